"""Queries as generators: written once, run by every storage engine (sans-I/O).

A query yields a statement with its parameters, receives the rows, and returns its result. It does no I/O and depends on
no engine; an engine drives it inside one transaction. Statements use PostgreSQL's placeholders `$1`, `$2`, …

A decorator marks how an engine may run a query; without a mark it gets one snapshot (a read) or one attempt (a write):

| mark | kind | meaning |
|---|---|---|
| `read_committed` | read | needs no snapshot across its statements |
| `batchable` | read | `read_committed`, and may share a statement with concurrent calls |
| `long_read` | read | `read_committed`, with the time limit of a long read |
| `retryable` | write | may be run again after a serialization conflict |
| `long_write` | write | `retryable`, with the time limit of a long write |
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial, wraps
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar

from ccp.errors import DatabaseUnavailable

T = TypeVar("T")
P = ParamSpec("P")
Row: TypeAlias = tuple[Any, ...]
Statement: TypeAlias = tuple[str, Row]
Query: TypeAlias = Generator[Statement, list[Row], T]


class SerializationConflict(DatabaseUnavailable):
    """Another transaction changed rows between a first look and the locks. An engine retries a `retryable` write."""


class MarkedQuery(Generator[Statement, list[Row], T], Generic[T]):
    """A query that can be run again: each `iter` starts it from the beginning, and so does each `yield from`.

    read_committed, batchable, long_running: see the decorators of this module.
    """

    def __init__(
        self,
        begin: Callable[[], Query[T]],
        name: str,
        *,
        read_committed: bool,
        batchable: bool = False,
        long_running: bool = False,
    ) -> None:
        self._begin = begin
        self._running: Query[T] | None = None
        self.__name__ = name
        self.read_committed = read_committed
        self.batchable = batchable
        self.long_running = long_running

    def __iter__(self) -> Query[T]:
        return self._begin()

    def send(self, rows: list[Row] | None) -> Statement:
        """Start the query (None), or give it the rows of its last statement. Returns the next statement."""
        self._running = self._running or self._begin()
        return next(self._running) if rows is None else self._running.send(rows)

    def throw(self, kind: Any, value: Any = None, traceback: TracebackType | None = None, /) -> Statement:
        """Raise an exception inside the query. Returns the next statement."""
        self._running = self._running or self._begin()
        return self._running.throw(kind if value is None else value)


def retryable(function: Callable[P, Query[T]]) -> Callable[P, Query[T]]:
    """Mark a write that an engine may run again after a conflict with another transaction.

    A second run with the same arguments must do the same. An argument that is a generator must be marked itself.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Query[T]:
        return MarkedQuery(partial(function, *args, **kwargs), function.__name__, read_committed=False)

    return call


def preserve_retryable(within: Query[Any], begin: Callable[[], Query[T]]) -> Query[T]:
    """Wrap a write so that the wrapper is retryable exactly when the wrapped write is.

    begin: starts the wrapper, which runs `within` with `yield from`.
    """
    if not isinstance(within, MarkedQuery):
        return begin()
    return MarkedQuery(begin, within.__name__, read_committed=False, long_running=within.long_running)


def read_committed(function: Callable[P, Query[T]]) -> Callable[P, Query[T]]:
    """Mark a read that needs no snapshot: each of its statements may see a newer committed state than the one before.

    For a query of one statement, or one whose result is correct even if others write between its statements. A snapshot
    costs two more round trips to a database server.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Query[T]:
        return MarkedQuery(partial(function, *args, **kwargs), function.__name__, read_committed=True)

    return call


def batchable(function: Callable[P, Query[T]]) -> Callable[P, Query[T]]:
    """Mark a read of the request path: it needs no snapshot, and an engine may combine concurrent calls into one
    statement.

    All parameters of its statements are texts, and the order of the rows does not matter.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Query[T]:
        return MarkedQuery(partial(function, *args, **kwargs), function.__name__, read_committed=True, batchable=True)

    return call


def long_read(function: Callable[P, Query[T]]) -> Callable[P, Query[T]]:
    """Mark a read whose cost grows with the pool, such as a list or a count; no request of a vehicle waits for it.

    An engine gives it more time and keeps it from delaying the lookups of requests. It is `read_committed` otherwise. A
    query that needs a snapshot is not marked: split it into short portions.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Query[T]:
        return MarkedQuery(
            partial(function, *args, **kwargs), function.__name__, read_committed=True, long_running=True
        )

    return call


def long_write(function: Callable[P, Query[T]]) -> Callable[P, Query[T]]:
    """Mark a write whose cost grows with its input, such as a revocation list: `retryable`, with more time."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Query[T]:
        return MarkedQuery(
            partial(function, *args, **kwargs), function.__name__, read_committed=False, long_running=True
        )

    return call
