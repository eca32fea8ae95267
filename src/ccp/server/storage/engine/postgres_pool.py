"""Connection pool of one worker for a PostgreSQL server, with a circuit breaker for a silent server.

Connections are reused without a reset, since no query leaves a trace on its session. Every use has a deadline. A
connection that has not answered by then is closed without a message to the server: asyncpg's own cancellation would
open another connection to ask the server to stop, and wait for the answer.

The circuit breaker keeps a silent server from costing every request its whole time. When a connection was closed at its
deadline and no other one had an answer within the last second, the pool tries a new connection twice a second. If none
is made within half a second the circuit opens, and a request for a connection is refused at once. The first new
connection closes the circuit. A server that refuses connections costs no time and does not open it.

A connection that was idle for a while, or since before another one was closed at its deadline, is checked with a short
query before it is used, because a half-open connection looks healthy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final
from weakref import WeakSet

import asyncpg
import structlog

from ccp.errors import DatabaseUnavailable
from ccp.server.storage.engine.postgres_hosts import Connection, Hosts
from ccp.server.storage.engine.time_limits import REQUESTS, TimeLimits
from ccp.server.storage.engine.use import DatabaseUse

_log = structlog.get_logger("ccp.server.storage")

# The outcome of the last statement is unknown, and the connection can no longer be used. The driver raises
# InternalClientError if a server announces its shutdown within another message.
LOST: Final = (asyncpg.PostgresConnectionError, asyncpg.InternalClientError, OSError, TimeoutError)

_MAX_IDLE: Final = 300.0  # Networks drop connections that were idle for long.
_TRUSTED: Final = 2.0  # A connection that answered within these seconds is used without a check.
_CHECK_TIMEOUT: Final = 0.5
_RECENT: Final = 1.0
_PROBE_INTERVAL: Final = 0.5
_PROBE_TIMEOUT: Final = 2.0  # Longer than the interval, so that a server that is slow to connect is found too.
_MAX_PROBES: Final = 4
_CLOSE_TIMEOUT: Final = 5.0


class Expiry:
    """A timer that calls a function at a deadline.

    The event loop reads its sockets once more before the call, so that a loop that is late does not blame the server.
    """

    __slots__ = ("_act", "_handle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, deadline: float, act: Callable[[], None]) -> None:
        self._loop = loop
        self._act = act
        self._handle = loop.call_at(deadline, self._due)

    def _due(self) -> None:
        self._handle = self._loop.call_later(0.005, self._act)

    def cancel(self) -> None:
        """Cancel the call."""
        self._handle.cancel()


class Room(asyncio.Semaphore):
    """A semaphore that knows how many wait for it."""

    waiting = 0


async def acquire(semaphore: Room, deadline: float, sentence: str) -> None:
    """Acquire a semaphore. deadline: in the loop's time. Raises Unavailable with the sentence after it."""
    if semaphore.locked():
        semaphore.waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await semaphore.acquire()
        except TimeoutError as exc:
            raise DatabaseUnavailable(sentence) from exc
        finally:
            semaphore.waiting -= 1
    else:
        await semaphore.acquire()


class ConnectionPool:
    """A pool of up to `size` connections. when_silent: called when the circuit opens."""

    def __init__(
        self, hosts: Hosts, size: int, limits: TimeLimits = REQUESTS, when_silent: Callable[[], None] = lambda: None
    ) -> None:
        self._hosts = hosts
        self._size = size
        self._limits = limits
        self._when_silent = when_silent
        self._room = Room(size)
        self._used = 0
        # Last in, first out: the connection used last has its statements prepared, and the others may time out.
        self._idle: list[tuple[Connection, float]] | None = None
        self._settings: Mapping[str, str] = {}
        self._preparing: WeakSet[Connection] = WeakSet()
        self._answered = 0.0  # When a connection was last given back after an answer.
        self._distrusted = 0.0  # Connections idle since before this time are checked before use.
        self._search: asyncio.Task[None] | None = None
        self.pooled = False
        """A connection pooler stands before the server: no prepared statements, no session settings."""
        self.silent = False
        """The circuit is open: the server does not answer."""

    def open(self, settings: Mapping[str, str], *, pooled: bool) -> None:
        """Start the pool. settings: for every session, unless there is a pooler."""
        self._settings, self.pooled = settings, pooled
        self._room = Room(self._size)
        self._idle = []

    async def close(self) -> None:
        """Close the idle connections; a connection in use is closed when it is given back."""
        idle, self._idle = self._idle, None
        if self._search is not None:
            self._search.cancel()
            await asyncio.gather(self._search, return_exceptions=True)
        await asyncio.gather(*(self._close(connection) for connection, _ in idle or ()))

    async def _close(self, connection: Connection) -> None:
        if self.silent:
            connection.terminate()
            return
        with contextlib.suppress(*LOST, asyncpg.InterfaceError):
            await connection.close(timeout=_CLOSE_TIMEOUT)

    def use(self, waiting: int) -> DatabaseUse:
        """The connections now. waiting: queries that wait for their turn to take one."""
        return DatabaseUse(self._used, len(self._idle or ()), self._size, waiting + self._room.waiting)

    def refuse_while_silent(self, sentence: str) -> None:
        """Raise Unavailable while the circuit is open."""
        if self.silent:
            raise DatabaseUnavailable(sentence)

    async def take(self, deadline: float, sentence: str) -> tuple[Connection, bool]:
        """Take a connection for exclusive use. Returns it, and whether it is new. deadline: in the loop's time.

        Raises Unavailable with the sentence after the deadline, and asyncpg's errors if the server refuses.
        """
        self.refuse_while_silent(sentence)
        await acquire(self._room, deadline, sentence)
        self._used += 1
        try:
            self.refuse_while_silent(sentence)
            while self._idle:
                connection, since = self._idle.pop()
                if await self._is_usable(connection, since, deadline):
                    return connection, False
                connection.terminate()
            return await self._connect(deadline), True
        except BaseException:
            self._used -= 1
            self._room.release()
            raise

    def give_back(self, connection: Connection, *, answered: bool = True) -> None:
        """Return a connection to the pool. answered: whether the server answered its last statement."""
        self._used -= 1
        if self._idle is None or (self.pooled and connection in self._preparing):
            connection.terminate()
        elif not connection.is_closed():
            now = asyncio.get_running_loop().time()
            if answered:
                self._answered = now
            self._idle.append((connection, now))
        self._room.release()

    def time_out(self, connection: Connection) -> None:
        """Cut a connection that missed its deadline. Its user gets an error and gives it back."""
        connection.terminate()
        self._suspect()

    def found_pooler(self) -> None:
        """Use no prepared statements and no session settings from now on."""
        self.pooled = True
        self.drop_idle()

    def drop_idle(self) -> None:
        """Close the idle connections."""
        if self._idle is not None:
            idle, self._idle = self._idle, []
            for connection, _ in idle:
                connection.terminate()

    async def _is_usable(self, connection: Connection, since: float, deadline: float) -> bool:
        """Whether a connection may be used that has been idle since a time. It may be checked with a query."""
        if connection.is_closed() or (self._hosts.writable_only and connection.read_only):
            return False
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - since > _MAX_IDLE:
            return False
        if since >= max(now - _TRUSTED, self._distrusted):
            return True
        expiry = Expiry(loop, min(now + _CHECK_TIMEOUT, deadline), connection.terminate)
        try:
            await connection.execute("select 1")
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            if loop.time() >= now + _CHECK_TIMEOUT:
                self._suspect()
            return False
        except BaseException:  # The caller was cancelled, and held the only reference to the connection.
            connection.terminate()
            raise
        finally:
            expiry.cancel()
        return not (self._hosts.writable_only and connection.read_only)

    async def _connect(self, deadline: float) -> Connection:
        """A new connection, with the session settings. Raises asyncpg's errors and TimeoutError."""
        prepare = not self.pooled
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._hosts.connect(self._limits.connect, prepare=prepare)
                if prepare:
                    self._preparing.add(connection)
                    try:
                        await connection.execute(_session(self._settings))
                    except BaseException:
                        connection.terminate()
                        raise
        except TimeoutError:
            self._suspect()
            raise
        return connection

    # --- Whether the server answers ---

    def _suspect(self) -> None:
        """Start probing the server, unless it answered within the last second: then only one statement was slow."""
        now = asyncio.get_running_loop().time()
        self._distrusted = now - _RECENT
        if not self._limits.refuse_while_silent:
            return
        if self._search is None and self._idle is not None and self._answered < now - _RECENT:
            self._search = asyncio.create_task(self._probe())
            self._search.add_done_callback(self._probe_ended)

    def _probe_ended(self, search: asyncio.Task[None]) -> None:
        self._search = None
        if not search.cancelled() and (exc := search.exception()) is not None:
            self.silent = False  # A defect must not keep the circuit open forever.
            _log.error("database probe failed", exc_info=exc)

    async def _probe(self) -> None:
        """Try to connect until the server answers, and open the circuit until then."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        attempts: dict[asyncio.Task[Connection], float] = {}
        try:
            while True:
                if len(attempts) < _MAX_PROBES:
                    attempts[asyncio.create_task(self._connect_for_probe())] = loop.time()
                next_probe = loop.time() + _PROBE_INTERVAL
                while attempts and (left := next_probe - loop.time()) > 0:
                    done, _ = await asyncio.wait(attempts, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        started = attempts.pop(task)
                        # An immediate refusal delays no request, and shows that the host is up.
                        quick = loop.time() - started < _PROBE_INTERVAL
                        if task.exception() is None or quick:
                            self._close_circuit(loop.time() - began, None if task.exception() else task.result())
                            return
                await asyncio.sleep(max(0.0, next_probe - loop.time()))
                if not self.silent:
                    self.silent = True
                    self.drop_idle()
                    self._when_silent()
                    _log.warning("database does not answer", probe_interval=_PROBE_INTERVAL)
        finally:
            for task in attempts:
                task.cancel()
                task.add_done_callback(_discard)

    async def _connect_for_probe(self) -> Connection:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PROBE_TIMEOUT
        connection = await self._connect(deadline)
        if self.pooled:  # A pooler accepts connections without a server.
            expiry = Expiry(loop, deadline, connection.terminate)
            try:
                await connection.execute("select 1")
            except BaseException:
                connection.terminate()
                raise
            finally:
                expiry.cancel()
        return connection

    def _close_circuit(self, duration: float, connection: Connection | None) -> None:
        if self.silent:
            self.silent = False
            _log.info("database answers again", seconds=round(duration, 2))
        now = asyncio.get_running_loop().time()
        if connection is not None:
            self._answered = now
            if self._idle is None or self._used + len(self._idle) >= self._size:
                connection.terminate()
            else:
                self._idle.append((connection, now))


def _discard(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().terminate()


def _session(settings: Mapping[str, str]) -> str:
    """Statements that make settings for the session. settings: trusted values, no user input."""
    return "; ".join(f"set {name} = '{value}'" for name, value in settings.items())
