"""Strict JSON parser whose errors give the position.

In one point it is stricter than RFC 8259 requires: an object with two members of the same name is an error, because
parsers differ in which of them they use (RFC 8259 clause 4).
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import orjson

from ccp.errors import FieldError
from ccp.schemas import suggestions

_NOT_JSON: Final = "The body is not JSON"

# First bytes of a text in other Unicode encodings, with and without byte order mark. UTF-32 comes first, since its mark
# begins with that of UTF-16.
_ENCODINGS: Final = (
    (re.compile(rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff|\x00\x00\x00[^\x00]|[^\x00]\x00\x00\x00", re.DOTALL), "UTF-32"),
    (re.compile(rb"\xff\xfe|\xfe\xff|\x00[^\x00]|[^\x00]\x00", re.DOTALL), "UTF-16"),
)
_BOM: Final = b"\xef\xbb\xbf"
_GZIP: Final = b"\x1f\x8b"

_EXPECTED: Final = {
    "Expecting property name enclosed in double quotes": "a member name in double quotes is expected",
    "Expecting ':' delimiter": "':' is expected",
    "Expecting ',' delimiter": "',' or the end of the object or array is expected",
    "Expecting value": "a value is expected",
    "Unterminated string starting at": "a string without end begins",
    "Invalid control character at": "a string has a control character, which must be escaped,",
    "Invalid \\escape": "a string has an invalid escape sequence",
    "Invalid \\uXXXX escape": "a string has an invalid escape sequence",
    "Extra data": "the end of the body is expected",
    "Illegal trailing comma before end of object": "a comma stands before the end",
    "Illegal trailing comma before end of array": "a comma stands before the end",
}
# Words of other notations. Of other text an error quotes one character only, because bodies do not belong in logs.
_WORD: Final = re.compile(r"(True|False|None|nan|inf|undefined|nil|NULL|Null|TRUE|FALSE)\b", re.ASCII)
_BEFORE: Final = re.compile(r",\s*\Z", re.ASCII)


class _Repeated(ValueError):
    """An object has a member name twice."""


class _NoNumber(ValueError):
    """The text contains NaN or Infinity."""


def has_exactly(data: bytes, strings: int) -> bool:
    """Whether the text of an object contains exactly so many strings, including member names.

    If these are the strings of all members that were read, no member is repeated or unknown. False proves nothing:
    quotes cannot be counted in a text with escape sequences.
    """
    return b"\\" not in data and data.count(b'"') == 2 * strings


def load(data: bytes) -> Any:
    """Parse a JSON text, with 0 for every number, since large numbers are slow to convert. Raises FieldError."""
    text = _text(data)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_members,
            parse_constant=_no_number,
            parse_int=_number,
            parse_float=_number,
        )
    except json.JSONDecodeError as exc:
        raise FieldError(_syntax(exc)) from exc
    except RecursionError as exc:
        raise FieldError(f"{_NOT_JSON}: it is nested too deeply.") from exc
    except _Repeated as exc:
        raise FieldError(f"{suggestions.quotable(str(exc))} : is given more than once") from exc
    except _NoNumber as exc:
        raise FieldError(f"{_NOT_JSON}: {exc} is not a number of JSON.") from exc
    if "\\u" in text:
        _check_surrogates(data)
    return value


def _check_surrogates(data: bytes) -> None:
    """Raises FieldError for half of a surrogate pair, which `json` accepts although no text can contain it."""
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        raise FieldError(f"{_NOT_JSON}: an escape sequence is half of a surrogate pair.") from exc


def syntax_error(data: bytes, problem: str) -> FieldError:
    """Return the error for a text that is not JSON. problem: of the fast parser, for errors that only it finds."""
    try:
        load(data)
    except FieldError as exc:
        return exc
    if problem.startswith("recursion limit"):
        return FieldError(f"{_NOT_JSON}: it is nested too deeply.")
    if problem.startswith("number out of range"):
        return FieldError(f"{_NOT_JSON}: a number in it is too long.")
    place = problem.rpartition(" at line ")[2].replace(" column", ", column")
    return FieldError(f"{_NOT_JSON}: something is wrong at line {place}.")


def _text(data: bytes) -> str:
    """Decode UTF-8 without byte order mark. Raises FieldError. Source: RFC 8259 clause 8.1."""
    if not data.strip():
        raise FieldError("The body is empty.")
    if data.startswith(_BOM):
        raise FieldError(f"{_NOT_JSON}: it begins with a byte order mark (EF BB BF), which must be left out.")
    if data.startswith(_GZIP):
        raise FieldError(f"{_NOT_JSON}: it looks like gzip, and must be sent without compression.")
    for pattern, name in _ENCODINGS:
        if pattern.match(data):
            raise FieldError(f"{_NOT_JSON}: it looks like {name}, and must be UTF-8.")
    try:
        return data.rstrip().decode("utf-8")
    except UnicodeDecodeError as exc:
        raise FieldError(f"{_NOT_JSON}: it is not UTF-8, byte {data[exc.start]:02X} at offset {exc.start}.") from exc


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _Repeated(name)
            seen.add(name)
    return members


def _number(text: str) -> int:
    return 0


def _no_number(name: str) -> Any:
    raise _NoNumber(name)


def _syntax(exc: json.JSONDecodeError) -> str:
    text, position = exc.doc, exc.pos
    expected = _EXPECTED.get(exc.msg, "something is wrong")
    if text[position : position + 1] in ("}", "]") and _BEFORE.search(text[max(0, position - 100) : position]):
        expected = "a comma stands before the end"
    place = f"{expected} at line {exc.lineno}, column {exc.colno}"
    if not expected.endswith("is expected"):
        return f"{_NOT_JSON}: {place}."
    if position >= len(text):
        return f"{_NOT_JSON}: {place}, but the body ends."
    word = _WORD.match(text, position)
    return f"{_NOT_JSON}: {place}, but there is {word[0] if word else _quoted(text[position])}."


def _quoted(character: str) -> str:
    plain = character.isascii() and character.isprintable() and character != " "
    if not plain:
        return f"U+{ord(character):04X}"
    return f"'{character}'" if character != "'" else f'"{character}"'
