"""Query parameters. A repeated or misspelt one is rejected, because ignoring it could change the meaning of a request.

An unknown parameter that resembles a known one is always rejected. Other unknown parameters are rejected by operations
that change something, and ignored by reads, because clients and proxies add their own. The known parameters are those
that the routes declare.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, TypeVar
from urllib.parse import parse_qsl

from fastapi import params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.types import Scope

from ccp.errors import FieldError
from ccp.schemas import suggestions
from ccp.schemas.field_errors import field_error

READS: Final = frozenset({"GET", "HEAD"})

_MAX_FIELDS: Final = 50
_MAX_PROBLEMS: Final = 10

Model = TypeVar("Model", bound=BaseModel)


def declared_names(route: APIRoute) -> frozenset[str]:
    """Return the query parameters that a route declares, in its signature and in its dependencies."""
    declared = get_flat_params(route.dependant)
    return frozenset(field.alias for field in declared if isinstance(field.field_info, params.Query))


def check_routed(scope: Scope) -> None:
    """Check the query of a request that FastAPI has routed; fast-path endpoints check their own. Raises FieldError."""
    route = scope.get("route")
    if scope["query_string"] and isinstance(route, APIRoute):
        check(scope["query_string"], declared_names(route), changes=scope["method"] not in READS)


def check(query: bytes, known: Collection[str], *, changes: bool) -> dict[str, str]:
    """Return the known parameters of a query string by name.

    changes: whether the operation changes something and therefore rejects unknown parameters. Raises FieldError.
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
        elif (meant := suggestions.closest(name, known)) is not None:
            problems[f"{suggestions.quotable(name)}: did you mean {meant}?"] = None
        elif changes:
            others = ", ".join(sorted(known))
            hint = f"this operation knows {others}" if others else "this operation knows none"
            problems[f"{suggestions.quotable(name)} : unknown query parameter; {hint}"] = None
        if len(problems) == _MAX_PROBLEMS:
            break
    if problems:
        raise FieldError(*problems)
    return found


def read(model: type[Model], query: bytes, *, changes: bool) -> Model:
    """Read the parameters that a model declares by the aliases of its fields. Raises FieldError."""
    found = check(query, names_of(model), changes=changes) if query else {}
    try:
        return model.model_validate(found)
    except ValidationError as exc:
        raise field_error(exc.errors()) from exc


def names_of(model: type[BaseModel]) -> frozenset[str]:
    """Return the parameters that a model declares."""
    return frozenset(field.alias or name for name, field in model.model_fields.items())
