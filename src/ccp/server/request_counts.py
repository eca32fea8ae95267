"""Counts of requests in memory, by dialect, operation and error code, until a task adds them to the database.

`ccp.server.audit.request_counts` writes them. Every label has few values, so the number of counters is bounded.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from ccp.errors.codes import ErrorCode


class Dialect(StrEnum):
    """The API of a request, by the first segment of its path."""

    OPNC = "opnc"
    OPCP = "opcp"
    OCPP = "ocpp"
    ADMIN = "admin"
    OAUTH = "oauth"
    OTHER = "other"


_BY_SEGMENT: Final = {
    "opnc": Dialect.OPNC,
    "v1": Dialect.OPCP,
    "ocpp": Dialect.OCPP,
    "admin": Dialect.ADMIN,
    "oauth": Dialect.OAUTH,
}


def dialect_of(path: str) -> Dialect:
    """Return the dialect of a path in canonical form."""
    return _BY_SEGMENT.get(path[1:].partition("/")[0], Dialect.OTHER)


class Counted(NamedTuple):
    """What requests are counted by. operation: empty if unknown. code: empty without a refusal."""

    dialect: str
    operation: str
    code: str


class RequestCounts:
    """Counters of one worker. A request adds one to a number in memory and waits for nothing."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Dialect, str | None, ErrorCode | None], int] = {}

    def add(self, dialect: Dialect, operation: str | None, code: ErrorCode | None, number: int = 1) -> None:
        """Count requests. operation: None if unknown. code: None if they were not refused."""
        key = dialect, operation, code
        self._counts[key] = self._counts.get(key, 0) + number

    def take(self) -> dict[Counted, int]:
        """Return what was counted since the last call."""
        counts, self._counts = self._counts, {}
        return {
            Counted(dialect.value, operation or "", "" if code is None else code.value): number
            for (dialect, operation, code), number in counts.items()
        }
