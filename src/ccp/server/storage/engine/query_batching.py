"""Lookups of concurrent requests, asked of a server as one.

A lookup costs a worker several times as much to send and to receive as a server takes to answer it. Those that come
within one turn of the event loop, or while others are on their way, are sent as one statement: a row of parameters for
each, and the original statement once for each row.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any, Final, TypeAlias

from ccp.errors import Unavailable
from ccp.server.storage.engine.query import Query, Row, T
from ccp.server.storage.engine.time_limits import NOT_READ, READ_TIMEOUT

Fetch: TypeAlias = Callable[[str, Row], Awaitable[Sequence[Any]]]

_MOST: Final = 64  # In one statement: longer, and the first of them wait for the last.
_ON_THEIR_WAY: Final = 2  # So that a server with a free core is given something to do while the answer is read.
_PARAMETER: Final = re.compile(r"\$(\d+)")


class QueryBatcher:
    """fetch: asks one statement of the server; what it raises, each of the askers is told. timeout: seconds for all of
    a question, with the wait for its turn.
    """

    def __init__(self, fetch: Fetch, timeout: float = READ_TIMEOUT) -> None:
        self._fetch = fetch
        self._timeout = timeout
        self._waiting: dict[str, list[tuple[Row, asyncio.Future[list[Row]]]]] = {}
        self._sent: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._deadlines: dict[asyncio.Future[list[Row]], float] = {}
        self._expiry: asyncio.TimerHandle | None = None

    async def answer(self, steps: Query[T]) -> T:
        """Ask a question whose parameters are all texts, each of its statements together with those of others.

        Raises Unavailable where its time is over, and what `fetch` raises.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        rows: list[Row] | None = None
        try:
            while True:
                statement, parameters = next(steps) if rows is None else steps.send(rows)
                rows = await self._ask(statement, parameters, deadline)
        except StopIteration as stop:
            answer: T = stop.value
            return answer

    async def close(self) -> None:
        """Wait for what is on its way."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    async def _ask(self, statement: str, parameters: Row, deadline: float) -> list[Row]:
        loop = asyncio.get_running_loop()
        asked: asyncio.Future[list[Row]] = loop.create_future()
        waiting = self._waiting.setdefault(statement, [])
        waiting.append((parameters, asked))
        if len(waiting) == 1 and self._sent.get(statement, 0) < _ON_THEIR_WAY:
            loop.call_soon(self._send, statement)
        self._deadlines[asked] = deadline
        if self._expiry is None:  # One for all: a timer for each would cost as much as the rest.
            self._expiry = loop.call_at(deadline, self._expire)
        try:
            return await asked
        finally:
            del self._deadlines[asked]

    def _expire(self) -> None:
        """Tell those that have waited for too long."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for asked, deadline in self._deadlines.items():
            if deadline <= now and not asked.done():
                asked.set_exception(Unavailable(NOT_READ))
        following = min((deadline for deadline in self._deadlines.values() if deadline > now), default=None)
        self._expiry = None if following is None else loop.call_at(following, self._expire)

    def _send(self, statement: str) -> None:
        waiting = self._waiting[statement]
        part: list[tuple[Row, asyncio.Future[list[Row]]]] = []
        while waiting and not part:  # Many at once may have gone, or have waited for too long: they need no answer.
            part = [each for each in waiting[:_MOST] if not each[1].done()]
            del waiting[:_MOST]
        if part:
            self._sent[statement] = self._sent.get(statement, 0) + 1
            task = asyncio.create_task(self._exchange(statement, part))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _exchange(self, statement: str, part: list[tuple[Row, asyncio.Future[list[Row]]]]) -> None:
        try:
            if len(part) == 1:
                answers = [list(await self._fetch(statement, part[0][0]))]
            else:
                answers = [[] for _ in part]
                columns = tuple(list(column) for column in zip(*(parameters for parameters, _ in part), strict=True))
                for row in await self._fetch(_together(statement, len(columns)), columns):
                    answers[row[0] - 1].append(row[1:])
        except BaseException as exc:
            for _, asked in part:
                if not asked.done():
                    asked.set_exception(exc)
            if not isinstance(exc, Exception):
                raise
        else:
            for (_, asked), rows in zip(part, answers, strict=True):
                if not asked.done():
                    asked.set_result(rows)
        finally:
            self._sent[statement] -= 1
            if self._waiting[statement]:
                self._send(statement)


@cache
def _together(statement: str, parameters: int) -> str:
    """The statement for many rows of parameters, given as one array for each; its rows come with the place before."""
    arrays = ", ".join(f"${number + 1}::text[]" for number in range(parameters))
    names = ", ".join(f"p{number + 1}" for number in range(parameters))
    once = _PARAMETER.sub(r"asked.p\1", statement)
    return (
        f"select asked.place, found.* from unnest({arrays}) with ordinality as asked ({names}, place) "  # noqa: S608
        f"cross join lateral ({once}) as found"
    )
