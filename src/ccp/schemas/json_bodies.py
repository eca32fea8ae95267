"""Reads JSON bodies into models, strictly: repeated members are errors, and every error of a body is reported."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ccp.errors import FieldError
from ccp.schemas import field_errors, json_input, suggestions

Body = TypeVar("Body", bound=BaseModel)

# The API's bodies have seven members and 10,000 characters of text, all of which may be commas. Parsing more takes time
# (a third of a second for 256 KiB of brackets) without benefit. A body of ordinary size cannot take long, so it is not
# counted. The parser limits the depth.
_MAX_PARTS: Final = 12_000
_LARGE: Final = 32_768  # Bytes.

_MAX_NAMED: Final = 5
_KINDS: Final = {list: "an array", str: "a string", int: "a number", bool: "true or false", type(None): "null"}


def read_body(model: type[Body], data: bytes) -> Body:
    """Read a JSON body. Raises FieldError, which names every wrong field."""
    if len(data) > _LARGE and sum(map(data.count, (b",", b"[", b"{"))) > _MAX_PARTS:
        raise FieldError(f"The body has more than {_MAX_PARTS} members and elements.")
    try:
        body = model.model_validate_json(data)
    except ValidationError as exc:
        raise _error_of(model, data, exc) from exc
    if not _has_nothing_else(body, data):
        json_input.load(data)
    return body


def _has_nothing_else(body: BaseModel, data: bytes) -> bool:
    """Whether the text consists of the members of the model, each once.

    Fast, with false negatives: it returns False if it cannot tell, for example for a value that is not a string.
    """
    read, values = body.model_fields_set, body.__dict__
    strings = len(read)
    for name in read:
        if isinstance(values[name], str):
            strings += 1
    return json_input.has_exactly(data, strings)


def _error_of(model: type[BaseModel], data: bytes, exc: ValidationError) -> FieldError:
    """Return the error for an invalid body, with one sentence for each problem."""
    problems = exc.errors(include_url=False)
    syntax = next((problem for problem in problems if problem["type"] == "json_invalid"), None)
    if syntax is not None:
        return json_input.syntax_error(data, syntax["ctx"]["error"])
    try:
        value = json_input.load(data)
    except FieldError as repeated:
        return repeated
    if not isinstance(value, dict):
        return FieldError(f"The body is not a JSON object: it is {_KINDS[type(value)]}.")
    return FieldError(*dict.fromkeys(_sentence(problem, model, value) for problem in problems))


def _sentence(problem: ErrorDetails, model: type[BaseModel], value: dict[str, Any]) -> str:
    sentence = field_errors.sentence(problem)
    if problem["type"] in ("missing", field_errors.MISSING_MEMBER):
        unknown = _unknown(model, value, problem["loc"][:-1])
        if unknown:
            return f"{sentence} (given: {', '.join(unknown)})"
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        known = suggestions.closest(str(problem["loc"][0]), model.model_fields)
        if known is not None:
            return f"{sentence}, did you mean {known}?"
    return sentence


def _unknown(model: type[BaseModel], value: Any, location: Collection[int | str]) -> list[str]:
    """Return the names of unknown members beside a missing one: one of them may be the missing one, misspelt."""
    known: Any = model
    for step in location:
        value = value[step] if isinstance(value, dict) else None
        field = known.model_fields.get(step)
        known = field.annotation if field is not None else None
        if not (isinstance(known, type) and issubclass(known, BaseModel)):
            return []
    names = [name for name in value if name not in known.model_fields] if isinstance(value, dict) else []
    return [*map(suggestions.quotable, names[:_MAX_NAMED]), *(["…"] if len(names) > _MAX_NAMED else [])]
