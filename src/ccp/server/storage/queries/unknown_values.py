"""Unknown enum values in rows, which a newer release may write during a rolling upgrade.

Unknown values are ignored: they grant nothing, and other rows are still read. Each value is logged once per process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from functools import lru_cache
from typing import TypeVar

import structlog

_log = structlog.get_logger("ccp.server.storage")

E = TypeVar("E", bound=Enum)


def known(kind: type[E], value: str, column: str, row: str = "") -> E | None:
    """The enum member with a value; None and a warning for an unknown value.

    column: table and column. row: key of the row; it must not name a vehicle or a contract.
    """
    try:
        return kind(value)
    except ValueError:
        warn(column, value, row)
        return None


def all_known(kind: type[E], values: Iterable[str], column: str, row: str = "") -> Iterator[E]:
    """The enum members of the known values."""
    for value in values:
        if (member := known(kind, value, column, row)) is not None:
            yield member


@lru_cache(1024)  # Once per value; with more values than this some are logged again.
def warn(column: str, value: object, row: str = "") -> None:
    """Log that a value of a row is ignored."""
    _log.warning("unknown value ignored", column=column, value=str(value)[:100], row=row)
