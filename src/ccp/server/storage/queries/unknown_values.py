"""Values of rows that this release does not know, as a newer one may write them during a rolling upgrade.

Unknown values are ignored: they grant nothing, and other rows are still read. The log names each value once per
process.
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
    """The member with this value, None with a warning for a value that is not known.

    column: table and column. row: which row it is, by its key; it must name no vehicle and no contract.
    """
    try:
        return kind(value)
    except ValueError:
        warn(column, value, row)
        return None


def all_known(kind: type[E], values: Iterable[str], column: str, row: str = "") -> Iterator[E]:
    """Those of the values that are known."""
    for value in values:
        if (member := known(kind, value, column, row)) is not None:
            yield member


@lru_cache(1024)  # Said once; where there are more different ones than this, perhaps again.
def warn(column: str, value: object, row: str = "") -> None:
    """Say that a value of a row is ignored."""
    _log.warning("unknown value ignored", column=column, value=str(value)[:100], row=row)
