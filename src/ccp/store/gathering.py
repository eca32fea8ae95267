"""One query for what many ask at the same moment.

Requests that are served at the same time ask the same about different vehicles. A statement costs the driver and the
server some hundred microseconds, whether it brings one row or twenty; so statements that look something up by its key
can be put together, and each asker gets the rows of its own keys. Pure; the engine decides when.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeAlias

from ccp.store.steps import Row

Key: TypeAlias = tuple[Any, ...]

# Tables that deliveries read, and the key that they are asked by.
_KEYS: Final = {"contract": ("pcid",), "evidence": ("issuer", "serial")}
_BY_ONE: Final = re.compile(r"select (.+) from (\w+) where (\w+) = \$1", re.DOTALL)
_BY_PAIRS: Final = re.compile(
    r"select (.+) from (\w+) where \((\w+) = \$1 and (\w+) = \$2\)(?: or \((?:\3) = \$\d+ and (?:\4) = \$\d+\))*",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Gathered:
    """A statement in the form that asks for many keys.

    statement: its `$1`, `$2`, … up to the key's length are lists of the keys' parts; `rest` follows as it is. places:
    where the key stands in a row.
    """

    statement: str
    places: tuple[int, ...]
    pairs: bool

    def keys(self, parameters: Row) -> tuple[Key, ...]:
        """What one asker asks for, each once: a statement with room for six is filled up where there are fewer."""
        if self.pairs:
            return tuple(dict.fromkeys(zip(parameters[::2], parameters[1::2], strict=True)))
        return (parameters[:1],)

    def rest(self, parameters: Row) -> Row:
        """What askers have to have in common."""
        return () if self.pairs else parameters[1:]

    def parameters(self, keys: Iterable[Key], rest: Row) -> Row:
        """For all keys of all askers, which may name the same ones."""
        return (*(list(part) for part in zip(*dict.fromkeys(keys), strict=True)), *rest)

    def handed_out(self, rows: Iterable[Row], askers: Sequence[Sequence[Key]]) -> list[list[Row]]:
        """The rows of each asker."""
        found: dict[Key, list[Row]] = {}
        for row in rows:
            found.setdefault(tuple([row[place] for place in self.places]), []).append(row)
        return [[row for key in keys for row in found.get(key, ())] for keys in askers]


@cache
def gathered(statement: str) -> Gathered | None:
    """The form for many of a statement that looks something up by its key and returns the key; None for others."""
    pairs = False
    match = _BY_ONE.fullmatch(statement)
    if match is None:
        match, pairs = _BY_PAIRS.fullmatch(statement), True
    if match is None:
        return None
    selected, table, *key = match.groups()
    columns = selected.split(", ")
    if _KEYS.get(table) != tuple(key) or not set(key) <= set(columns):
        return None
    lists = ", ".join(f"unnest(${number}::text[])" for number in range(1, len(key) + 1))
    asked = f"({', '.join(key)}) in (select {lists})" if pairs else f"{key[0]} = any($1::text[])"
    many = f"select {selected} from {table} where {asked}"  # noqa: S608  of our own statement
    return Gathered(many, tuple(columns.index(name) for name in key), pairs)
