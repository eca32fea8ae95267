"""Query parameters: a repeated or misspelt one is refused, because it could change what a request means.

An unknown parameter that resembles a known one is refused everywhere. Any other unknown parameter is refused by
operations that change something, and ignored by reads, since clients and proxies add their own. What is known is read
from the routes' own declarations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from fastapi import params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.types import Scope

from ccp import wire
from ccp.errors import FieldError

READS: Final = frozenset({"GET", "HEAD"})

_MAX_FIELDS: Final = 50
_MAX_SENTENCES: Final = 10
_MAX_SHOWN: Final = 40  # Characters of a name in a sentence.
_SEPARATORS: Final = re.compile(r"[^0-9a-z]+")
_PLAIN: Final = re.compile(r"[0-9A-Za-z_.-]+", re.ASCII)

Model = TypeVar("Model", bound=BaseModel)


def known_of(route: APIRoute) -> frozenset[str]:
    """The query parameters that a route declares, in its own signature and in its dependencies."""
    declared = get_flat_params(route.dependant)
    return frozenset(field.alias for field in declared if isinstance(field.field_info, params.Query))


def check_declared(scope: Scope) -> None:
    """Check the query of a request that the framework routed; others check their own. Raises FieldError."""
    route = scope.get("route")
    if scope["query_string"] and isinstance(route, APIRoute):
        check(scope["query_string"], known_of(route), changes=scope["method"] not in READS)


def check(query: bytes, known: Collection[str], *, changes: bool) -> dict[str, str]:
    """The known parameters of a query string by name.

    changes: whether the operation changes something, and therefore knows no parameters but its own. Raises FieldError.
    """
    found: dict[str, str] = {}
    problems: dict[str, None] = {}
    try:
        given = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError as exc:
        raise FieldError(f"The query has more than {_MAX_FIELDS} parameters.") from exc
    for name, value in given:
        if name in known:
            if name in found:
                problems[f"{name} : is given more than once"] = None
            found[name] = value
        elif (meant := _meant(name, known)) is not None:
            problems[f"{_shown(name)}: did you mean {meant}?"] = None
        elif changes:
            others = ", ".join(sorted(known))
            told = f"this operation knows {others}" if others else "this operation knows none"
            problems[f"{_shown(name)} : unknown query parameter; {told}"] = None
        if len(problems) == _MAX_SENTENCES:
            break
    if problems:
        raise FieldError(*problems)
    return found


def read(model: type[Model], query: bytes, *, changes: bool) -> Model:
    """The parameters that a model declares by the aliases of its fields. Raises FieldError."""
    found = check(query, names_of(model), changes=changes) if query else {}
    try:
        return model.model_validate(found)
    except ValidationError as exc:
        raise wire.field_error(exc.errors()) from exc


def names_of(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in model.model_fields.items())


def _meant(name: str, known: Collection[str]) -> str | None:
    """The known name that another one resembles: but for case and separators, or by a letter or two.

    Short names resemble many, so they have to come closer: one letter below six, none below four.
    """
    bare = _bare(name)
    for candidate in sorted(known):
        target = _bare(candidate)
        allowed = 0 if min(len(bare), len(target)) < 4 else 1 if len(target) < 6 else 2
        if abs(len(bare) - len(target)) <= allowed and _within(bare, target, allowed):
            return candidate
    return None


def _bare(name: str) -> str:
    return _SEPARATORS.sub("", name.lower())


def _within(one: str, other: str, edits: int) -> bool:
    """Whether at most so many letters to insert, delete, replace or swap with the next one make them the same."""
    pairs = enumerate(zip(one, other, strict=False))
    same = next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
    one, other = one[same:], other[same:]
    if not one or not other:
        return len(one) + len(other) <= edits
    if edits == 0:
        return False
    return (
        _within(one[1:], other, edits - 1)
        or _within(one, other[1:], edits - 1)
        or _within(one[1:], other[1:], edits - 1)
        or (one[:2] == other[1::-1] and _within(one[2:], other[2:], edits - 1))
    )


def _shown(name: str) -> str:
    """A name as a sentence may quote it: shortened, and with nothing in it that a terminal obeys."""
    short = name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}…"
    return short if _PLAIN.fullmatch(name) else json.dumps(short)


def parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    """A model's parameters as the OpenAPI description has them."""
    properties: dict[str, Any] = model.model_json_schema()["properties"]
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in properties.items()]
