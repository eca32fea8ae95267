"""Parsing of the members of a register's entry, each with the parser of its name. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ccp.errors import FieldError


def parse_each(given: Mapping[str, Any], parsers: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """Parse every member, by name. Raises FieldError with the sentences of all parsers that raise it."""
    found: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in given.items():
        try:
            found[name] = parsers[name](value)
        except FieldError as exc:
            problems += exc.messages
    if problems:
        raise FieldError(*dict.fromkeys(problems))
    return found
