"""Writes in progress on a PostgreSQL server, and a primary that waits for its synchronous standby.

With synchronous replication a commit is made on the primary and then waits for the standby. If the standby hangs, the
commit gets no answer, although the server answers everything else. The server does not notice that the connection of
such a commit was cut, so waiting sessions would use up its connections. Therefore the connection of such a commit is
held until the commit is answered, and while one is held no write begins. Its answer shows that the standby is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg
import structlog

from ccp.errors import CCPError, DatabaseUnavailable, Unavailable
from ccp.server.storage.engine import time_limits
from ccp.server.storage.engine.postgres_hosts import Connection
from ccp.server.storage.engine.postgres_pool import Expiry

_log = structlog.get_logger("ccp.server.storage")

WAITING: Final = """
select 1 from pg_stat_activity
where wait_event = 'SyncRep' and datname = current_database() and usename = current_user limit 1
"""
"""Returns a row while a commit of this user waits."""

NOT_WRITTEN: Final = "The database waits for its synchronous standby; nothing was changed, try again."
NOT_CONFIRMED: Final = (
    "The database waits for its synchronous standby and did not confirm the change, which may have been made or not; "
    "try again."
)
_EXAMINE: Final = 1.0
"""Seconds before its deadline at which a commit without an answer is examined."""


class Write:
    """A write in progress. timeout: seconds for all of it. connection: the one in use.

    outcome: awaited by the caller; it may be set before the write ends. committing: the commit request was sent.
    """

    __slots__ = ("_expiry", "_watch", "committing", "connection", "deadline", "examined", "late", "outcome", "timeout")

    def __init__(self, watch: StandbyWatch, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        self.timeout = timeout
        self.deadline = loop.time() + timeout
        self.outcome: asyncio.Future[Any] = loop.create_future()
        self.connection: Connection | None = None
        self.committing = False
        self.examined = self.late = False
        self._watch = watch
        self._expiry: Expiry | asyncio.TimerHandle = loop.call_at(self.deadline - _EXAMINE, self._nearly_due)

    def fail(self, sentence: str) -> None:
        """Raise Unavailable in the caller, before the write has ended."""
        if not self.outcome.done():
            self.outcome.set_exception(DatabaseUnavailable(sentence))

    def ended(self, task: asyncio.Task[Any]) -> None:
        """Pass the result of the finished task to the caller."""
        self._expiry.cancel()
        self._watch.release(self)
        if self.outcome.done():
            return
        if task.cancelled():
            self.outcome.cancel()
        elif (exc := task.exception()) is not None:
            self.outcome.set_exception(exc)
        else:
            self.outcome.set_result(task.result())

    def _nearly_due(self) -> None:
        self._watch.examine(self)
        self._expiry = Expiry(asyncio.get_running_loop(), self.deadline, self._due)

    def _due(self) -> None:
        self.late = True
        self._watch.decide(self)


class StandbyWatch:
    """Ends writes that miss their deadline, except commits that wait for a standby, which are held.

    is_waiting: whether a commit waits for a standby, see `WAITING`; raises CCPError if that cannot be determined. cut:
    ends a connection whose server did not answer in time.
    """

    def __init__(self, is_waiting: Callable[[], Awaitable[bool]], cut: Callable[[Connection], None]) -> None:
        self._is_waiting = is_waiting
        self._cut = cut
        self._held: set[Write] = set()
        self._examining: set[asyncio.Task[None]] = set()
        self._closing = False

    def begin(self, timeout: float) -> Write:
        """Start a write. timeout: seconds."""
        return Write(self, timeout)

    def refuse_while_waiting(self) -> None:
        """Raise Unavailable while a commit is held."""
        if self._held:
            raise DatabaseUnavailable(NOT_WRITTEN)

    async def explain(self, failure: Unavailable) -> Unavailable:
        """The error of a write that failed. A held commit keeps its locks, of a vehicle for instance, so writes of this
        and other processes fail on them.
        """
        cause = failure.__cause__
        if not (
            isinstance(cause, asyncpg.LockNotAvailableError) and (self._held or await self._standby_is_waited_for())
        ):
            return failure
        explained = DatabaseUnavailable(NOT_WRITTEN)
        explained.__cause__ = cause
        return explained

    def examine(self, write: Write) -> None:
        """Find out in the background why a commit has no answer yet."""
        if write.committing and not write.examined:
            write.examined = True
            task = asyncio.create_task(self._examine(write))
            self._examining.add(task)
            task.add_done_callback(self._examining.discard)

    async def _examine(self, write: Write) -> None:
        waiting = await self._standby_is_waited_for()
        if waiting and write.committing and not self._closing:
            self.hold(write)
        elif write.late:
            self._end(write)
        else:
            write.examined = False  # It is examined again at its deadline.

    async def _standby_is_waited_for(self) -> bool:
        try:
            return await self._is_waiting()
        except CCPError:
            return False

    def decide(self, write: Write) -> None:
        """End or hold a write that has reached its deadline."""
        if write in self._held:
            write.fail(NOT_CONFIRMED)
        elif write.committing and not self._closing:
            write.fail(time_limits.NOT_CONFIRMED)
            self.examine(write)
        else:
            if self._held and write.connection is not None:
                write.fail(NOT_WRITTEN)  # It waited for a lock. Cutting the connection aborts it.
            self._end(write)

    def hold(self, write: Write) -> None:
        """Keep the connection of a commit that waits for the standby."""
        if not self._held:
            _log.warning("synchronous standby does not answer")
        self._held.add(write)

    def release(self, write: Write) -> None:
        """A write has ended. The last held commit ends the wait for the standby."""
        if write in self._held:
            self._held.discard(write)
            if not self._held:
                _log.info("synchronous standby answers again")

    def end_held(self) -> None:
        """Release the held commits: the server itself is silent, or the store is closing."""
        for write in tuple(self._held):
            write.fail(NOT_CONFIRMED)
            self._end(write)

    def close(self) -> None:
        """Hold no commit from now on."""
        self._closing = True
        self.end_held()

    def _end(self, write: Write) -> None:
        if write.connection is not None:
            self._cut(write.connection)
