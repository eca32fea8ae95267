"""Questions to the store, written once for every engine.

A question is a generator: it yields a statement with its parameters, is sent the rows, and returns its answer. It does
no I/O and knows no engine; an engine drives it inside one transaction. Statements use `$1`, `$2`, …, as PostgreSQL
does.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial, wraps
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar

from ccp.errors import Unavailable

T = TypeVar("T")
P = ParamSpec("P")
Row: TypeAlias = tuple[Any, ...]
Statement: TypeAlias = tuple[str, Row]
Steps: TypeAlias = Generator[Statement, list[Row], T]


class Overtaken(Unavailable):
    """Another transaction changed what this one had looked at before its locks. An engine repeats it if it may."""


class Question(Generator[Statement, list[Row], T], Generic[T]):
    """A question that can be put again: each `iter` begins it anew, and so does each `yield from`.

    newest, together, long: see the decorators `newest`, `gathered`, `long_running` and `long_change`.
    """

    def __init__(
        self, begin: Callable[[], Steps[T]], name: str, *, newest: bool, together: bool = False, long: bool = False
    ) -> None:
        self._begin = begin
        self._steps: Steps[T] | None = None
        self.__name__ = name
        self.newest = newest
        self.together = together
        self.long = long

    def __iter__(self) -> Steps[T]:
        return self._begin()

    def send(self, rows: list[Row] | None) -> Statement:
        self._steps = self._steps or self._begin()
        return next(self._steps) if rows is None else self._steps.send(rows)

    def throw(self, kind: Any, value: Any = None, traceback: TracebackType | None = None, /) -> Statement:
        self._steps = self._steps or self._begin()
        return self._steps.throw(kind if value is None else value)


def repeatable(function: Callable[P, Steps[T]]) -> Callable[P, Steps[T]]:
    """Mark a change that an engine may begin anew where another transaction was in its way.

    Its parameters must be such that a second run does the same: no generators among them but those that are marked
    themselves.
    """

    @wraps(function)
    def put(*args: P.args, **kwargs: P.kwargs) -> Steps[T]:
        return Question(partial(function, *args, **kwargs), function.__name__, newest=False)

    return put


def alike(within: Steps[Any], begin: Callable[[], Steps[T]]) -> Steps[T]:
    """A change around another one: it can be begun anew where that one can. begin: asks it with `yield from`."""
    if not isinstance(within, Question):
        return begin()
    return Question(begin, within.__name__, newest=False, long=within.long)


def newest(function: Callable[P, Steps[T]]) -> Callable[P, Steps[T]]:
    """Mark a question each of whose statements sees the newest state, which another may have changed since the last.

    For a question of one statement, or one that is right even when others write between its statements. Every other
    question is given one snapshot; where a server has to be asked for it, that is two more round trips.
    """

    @wraps(function)
    def put(*args: P.args, **kwargs: P.kwargs) -> Steps[T]:
        return Question(partial(function, *args, **kwargs), function.__name__, newest=True)

    return put


def gathered(function: Callable[P, Steps[T]]) -> Callable[P, Steps[T]]:
    """Mark a question that is asked by every request: as `newest`, and an engine may ask it together with others.

    All parameters of its statements are texts, and the order of the rows does not matter.
    """

    @wraps(function)
    def put(*args: P.args, **kwargs: P.kwargs) -> Steps[T]:
        return Question(partial(function, *args, **kwargs), function.__name__, newest=True, together=True)

    return put


def long_running(function: Callable[P, Steps[T]]) -> Callable[P, Steps[T]]:
    """Mark a read that may look at more rows than a request may wait for: lists, counts, whatever grows with the pool.

    An engine gives it more time, and keeps it from holding up the lookups of requests. As `newest` in everything else.
    A question that needs a snapshot is not marked but asked in portions, each of which is short.
    """

    @wraps(function)
    def put(*args: P.args, **kwargs: P.kwargs) -> Steps[T]:
        return Question(partial(function, *args, **kwargs), function.__name__, newest=True, long=True)

    return put


def long_change(function: Callable[P, Steps[T]]) -> Callable[P, Steps[T]]:
    """Mark a change whose work grows with its input, such as a revocation list: as `repeatable`, with more time."""

    @wraps(function)
    def put(*args: P.args, **kwargs: P.kwargs) -> Steps[T]:
        return Question(partial(function, *args, **kwargs), function.__name__, newest=False, long=True)

    return put
