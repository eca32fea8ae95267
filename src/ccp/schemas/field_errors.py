"""Converts pydantic's errors into the API's sentences. No text of pydantic reaches a caller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pydantic_core import ErrorDetails

from ccp.errors import FieldError
from ccp.schemas import suggestions

MISSING_MEMBER: Final = "missing_member"
OWN_TYPES: Final = frozenset({"field", "boolean", MISSING_MEMBER})
"""Error types of this project's validators, whose texts are used as they are. `field` is a whole sentence, and so is
`missing_member`, for a member that may have one of several names."""

_SOURCES: Final = ("body", "query", "path", "header")
_NO_NUL: Final = "^[^\\x00]*$"

_PREDICATES: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "missing": lambda ctx: "is missing",
    "extra_forbidden": lambda ctx: "unknown member",
    "string_type": lambda ctx: "must be a string",
    "string_unicode": lambda ctx: "must be a string",
    "string_too_short": lambda ctx: _at_least(ctx["min_length"], "character"),
    "string_too_long": lambda ctx: f"must have at most {ctx['max_length']} characters",
    "string_pattern_mismatch": lambda ctx: (
        "must not contain U+0000" if ctx["pattern"] == _NO_NUL else f'must match "{ctx["pattern"]}"'
    ),
    "list_type": lambda ctx: "must be an array",
    "too_short": lambda ctx: _at_least(ctx["min_length"], "item"),
    "too_long": lambda ctx: f"must have at most {ctx['max_length']} items",
    "literal_error": lambda ctx: f"must be {ctx['expected']}",
    "enum": lambda ctx: f"must be {ctx['expected']}",
    "bool_type": lambda ctx: "must be true or false",
    "bool_parsing": lambda ctx: "must be true or false",
    "int_type": lambda ctx: "must be an integer",
    "int_parsing": lambda ctx: "must be an integer",
    "int_parsing_size": lambda ctx: "must be an integer of fewer digits",
    "int_from_float": lambda ctx: "must be an integer",
    "greater_than": lambda ctx: f"must be greater than {ctx['gt']}",
    "greater_than_equal": lambda ctx: f"must be at least {ctx['ge']}",
    "less_than": lambda ctx: f"must be less than {ctx['lt']}",
    "less_than_equal": lambda ctx: f"must be at most {ctx['le']}",
    "dict_type": lambda ctx: "must be an object",
    "model_type": lambda ctx: "must be an object",
    "model_attributes_type": lambda ctx: "must be an object",
}
_DEFAULT: Final = "is not valid"


def sentence(problem: ErrorDetails) -> str:
    """Return the sentence for one error.

    problem: with its context; with its input, if null shall be distinguished from other values.
    """
    kind = problem["type"]
    if kind in ("field", MISSING_MEMBER):
        return problem["msg"]
    place = place_of(problem)
    if not place:
        return "The body is not a JSON object."
    return f"{place} : {_text(problem)}"


def field_error(problems: Iterable[ErrorDetails]) -> FieldError:
    """Convert the errors of pydantic into one error with a sentence for each."""
    return FieldError(*dict.fromkeys(map(sentence, problems)))


def place_of(problem: ErrorDetails) -> str:
    """Return the location of the problem as `member.0.member`; empty for the whole body."""
    location = problem["loc"][1:] if problem["loc"][:1] and problem["loc"][0] in _SOURCES else problem["loc"]
    return ".".join(suggestions.quotable(str(step)) for step in location)


def _text(problem: ErrorDetails) -> str:
    kind = problem["type"]
    if kind in OWN_TYPES:
        return problem["msg"]
    if kind not in ("missing", "extra_forbidden") and problem.get("input", "") is None:
        return "must not be null"
    predicate = _PREDICATES.get(kind)
    return _DEFAULT if predicate is None else predicate(problem.get("ctx", {}))


def _at_least(number: int, noun: str) -> str:
    return "must not be empty" if number == 1 else f"must have at least {number} {noun}s"
