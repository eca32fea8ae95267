"""Query batching: concurrent calls of a batchable query share one statement to the database server.

Sending a lookup and receiving its rows costs a worker several times what the server needs to answer it. Calls that
arrive in one iteration of the event loop, or while earlier ones are in flight, are sent as one statement: a row of
parameters for each call, and the original statement once for each row. GraphQL's DataLoader does the same.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any, Final, TypeAlias

from ccp.errors import DatabaseUnavailable
from ccp.server.storage.engine.query import Query, Row, T
from ccp.server.storage.engine.time_limits import NOT_READ, READ_TIMEOUT

Fetch: TypeAlias = Callable[[str, Row], Awaitable[Sequence[Any]]]
_Call: TypeAlias = tuple[Row, asyncio.Future[list[Row]]]

_MAX_CALLS: Final = 64  # In one statement. In a longer batch the first calls would wait for the last.
_MAX_IN_FLIGHT: Final = 2  # Batches of a statement: the server works on one while the worker reads the other.
_PARAMETER: Final = re.compile(r"\$(\d+)")


class QueryBatcher:
    """Combines calls of batchable queries.

    fetch: runs one statement on the server; every call of the batch gets its error. timeout: seconds for a whole query,
    including the wait for its batch.
    """

    def __init__(self, fetch: Fetch, timeout: float = READ_TIMEOUT) -> None:
        self._fetch = fetch
        self._timeout = timeout
        self._waiting: dict[str, list[_Call]] = {}
        self._in_flight: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._deadlines: dict[asyncio.Future[list[Row]], float] = {}
        self._expiry: asyncio.TimerHandle | None = None

    async def run(self, query: Query[T]) -> T:
        """Run a query whose parameters are all texts, each of its statements in a batch with those of other calls.

        Raises Unavailable after the timeout, and the errors of `fetch`.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        rows: list[Row] | None = None
        try:
            while True:
                statement, parameters = next(query) if rows is None else query.send(rows)
                rows = await self._call(statement, parameters, deadline)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def close(self) -> None:
        """Wait for the batches in flight."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    async def _call(self, statement: str, parameters: Row, deadline: float) -> list[Row]:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[list[Row]] = loop.create_future()
        waiting = self._waiting.setdefault(statement, [])
        waiting.append((parameters, result))
        if len(waiting) == 1 and self._in_flight.get(statement, 0) < _MAX_IN_FLIGHT:
            loop.call_soon(self._send, statement)
        self._deadlines[result] = deadline
        if self._expiry is None:  # One timer for all calls: a timer each would double the cost of a call.
            self._expiry = loop.call_at(deadline, self._expire)
        try:
            return await result
        finally:
            del self._deadlines[result]

    def _expire(self) -> None:
        """Fail the calls whose deadline has passed."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for result, deadline in self._deadlines.items():
            if deadline <= now and not result.done():
                result.set_exception(DatabaseUnavailable(NOT_READ))
        following = min((deadline for deadline in self._deadlines.values() if deadline > now), default=None)
        self._expiry = None if following is None else loop.call_at(following, self._expire)

    def _send(self, statement: str) -> None:
        waiting = self._waiting[statement]
        batch: list[_Call] = []
        while waiting and not batch:  # Skip calls that were cancelled or have expired.
            batch = [call for call in waiting[:_MAX_CALLS] if not call[1].done()]
            del waiting[:_MAX_CALLS]
        if batch:
            self._in_flight[statement] = self._in_flight.get(statement, 0) + 1
            task = asyncio.create_task(self._exchange(statement, batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _exchange(self, statement: str, batch: list[_Call]) -> None:
        try:
            if len(batch) == 1:
                results = [list(await self._fetch(statement, batch[0][0]))]
            else:
                results = [[] for _ in batch]
                columns = tuple(list(column) for column in zip(*(parameters for parameters, _ in batch), strict=True))
                for row in await self._fetch(_batched(statement, len(columns)), columns):
                    results[row[0] - 1].append(row[1:])
        except BaseException as exc:
            for _, result in batch:
                if not result.done():
                    result.set_exception(exc)
            if not isinstance(exc, Exception):
                raise
        else:
            for (_, result), rows in zip(batch, results, strict=True):
                if not result.done():
                    result.set_result(rows)
        finally:
            self._in_flight[statement] -= 1
            if self._waiting[statement]:
                self._send(statement)


@cache
def _batched(statement: str, parameters: int) -> str:
    """The statement for a batch: each parameter is an array, and each row begins with the number of its call."""
    arrays = ", ".join(f"${number + 1}::text[]" for number in range(parameters))
    names = ", ".join(f"p{number + 1}" for number in range(parameters))
    once = _PARAMETER.sub(r"batch.p\1", statement)
    return (
        f"select batch.place, found.* from unnest({arrays}) with ordinality as batch ({names}, place) "  # noqa: S608
        f"cross join lateral ({once}) as found"
    )
