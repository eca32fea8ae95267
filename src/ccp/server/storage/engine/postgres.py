"""Storage engine for several workers and machines: a PostgreSQL server, with or without Citus.

A write is one transaction at READ COMMITTED: it locks the rows that it decides by, in one order, and reads what they
guard only afterwards. A read that is marked `read_committed` costs one round trip for each of its statements; every
other read sees one snapshot.

Each worker keeps a few connections (`ccp.server.storage.engine.postgres_pool`), some of which only reads may use.
Statements are prepared once on each connection. Behind a pooler nothing stays prepared, and every query runs in a
transaction (`ccp.server.storage.engine.postgres_pooler`). A query that exceeds its time limit
(`ccp.server.storage.engine.time_limits`) raises Unavailable, and its connection is cut.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import asyncpg
import structlog

from ccp.errors import ConfigurationError, DatabaseUnavailable, Unavailable
from ccp.server.storage.engine import (
    postgres_commands,
    postgres_pooler,
    schema_version,
    stored_secrets,
    synchronous_standby,
)
from ccp.server.storage.engine.postgres_errors import CONFLICTS, UnconfirmedCommit, is_lost, translate
from ccp.server.storage.engine.postgres_hosts import Connection, Hosts
from ccp.server.storage.engine.postgres_pool import LOST, ConnectionPool, Expiry, Room, acquire
from ccp.server.storage.engine.query import MarkedQuery, Query, Row, T
from ccp.server.storage.engine.query_batching import QueryBatcher
from ccp.server.storage.engine.secret_codec import SecretCodec
from ccp.server.storage.engine.stored_secrets import CODEC
from ccp.server.storage.engine.synchronous_standby import StandbyWatch, Write
from ccp.server.storage.engine.time_limits import NOT_READ, NOT_WRITTEN, TimeLimits
from ccp.server.storage.engine.use import DatabaseUse

_log = structlog.get_logger("ccp.server.storage")

_OPEN_TIMEOUT: Final = 15.0
_ROLLBACK_TIMEOUT: Final = 1.0  # Of a connection whose caller was cancelled.
_MAX_ATTEMPTS: Final = 5

_SETTINGS: Final = {
    # Shorter than the time limit of a write, so that the server reports the lock before the connection is cut.
    "lock_timeout": "4s",
    # A worker that was stopped during a write must not keep its locks. Longer than any write may take.
    "idle_in_transaction_session_timeout": "6s",
    "jit": "off",
    # Stores a contract of 4 KB in less than half the time of the server's default.
    "default_toast_compression": "lz4",
    "synchronous_commit": "on",
}
# Without a pooler: the server ends the queries of a worker that has gone.
_SESSION_SETTINGS: Final = {
    "client_connection_check_interval": "1s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
# Only settings that the server knows: not every one was built with lz4. A server that waits for a standby keeps its own
# synchronous_commit.
_SELECT_KNOWN: Final = """
select known.name, wanted.value
from unnest($1::text[], $2::text[]) as wanted (name, value) join pg_settings known on known.name = wanted.name
where (known.vartype <> 'enum' or wanted.value = any (known.enumvals))
    and (known.name <> 'synchronous_commit' or known.setting = 'off')
"""


class PostgresStore:
    """A `ccp.server.storage.Store` on a PostgreSQL server. connections: the maximum of this process; writes may use
    most of them, never all.
    """

    def __init__(self, url: str, connections: int, limits: TimeLimits, codec: SecretCodec) -> None:
        self._url = url
        self._codec = codec
        self._limits = limits
        self._pool = ConnectionPool(Hosts(url), connections, limits, self._server_is_silent)
        self._standby = StandbyWatch(self._standby_is_waited_for, self._pool.time_out)
        # Reads go on while every write waits, for a standby for instance.
        self._writers = connections - max(1, connections // 4) or 1
        # Lists and counts may take a minute each. They leave connections to the lookups of requests: at least one of
        # eight, even while every write waits.
        self._long_readers = max(1, connections // 8)
        self._writing = Room(self._writers)
        self._long_reading = Room(self._long_readers)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reading: set[Connection] = set()
        self._batcher: QueryBatcher | None = None
        self._settings: dict[str, str] = {}
        self._open = False

    async def open(self) -> None:
        """Open the store, see `ccp.server.storage.Store`."""
        connection = await postgres_commands.connect(self._url)
        loop = asyncio.get_running_loop()
        limit = Expiry(loop, loop.time() + _OPEN_TIMEOUT, connection.terminate)
        try:
            pooled = await postgres_pooler.is_between(connection)
            wanted = {
                **_SETTINGS,
                **({} if pooled else _SESSION_SETTINGS),
                "statement_timeout": f"{max(self._limits.read, self._limits.write):.0f}s",
            }
            async with connection.transaction():
                schema_version.check_revision(await postgres_commands.revision(connection))
                await _run(connection, iter(stored_secrets.state()), self._codec)  # Raises without the keys.
                known = await connection.fetch(_SELECT_KNOWN, list(wanted), list(wanted.values()))
                self._settings = {name: value for name, value in known}  # noqa: C416  records are not tuples
                # Citus plans every statement again, and routes only statements on one table directly to the node.
                if await connection.fetchval("select 1 from pg_extension where extname = 'citus'") is None:
                    self._batcher = QueryBatcher(self._fetch, self._limits.read)
            await connection.close(timeout=postgres_commands.CONNECT_TIMEOUT)
        except LOST as exc:
            raise ConfigurationError(
                "The database server went away, or does not answer, while the pool starts."
            ) from exc
        finally:
            limit.cancel()
            connection.terminate()
        if pooled:
            _log.info("database pooler found", prepared_statements=False)
        self._writing = Room(self._writers)
        self._long_reading = Room(self._long_readers)
        self._pool.open(self._settings, pooled=pooled)
        self._open = True

    async def close(self) -> None:
        """Close the store, see `ccp.server.storage.Store`."""
        self._open = False
        if self._batcher is not None:
            await self._batcher.close()
        self._standby.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._pool.close()

    def _begin(self, how: str, timeout: float) -> str:
        """Statements that begin a transaction; behind a pooler with the settings that are otherwise the session's.

        how: isolation level and access mode. timeout: statement timeout, set if it is longer than the session's.
        """
        begin = f"begin {how}"
        if self._pool.pooled:
            begin += f"; {postgres_pooler.settings_of_transaction(self._settings)}"
        if timeout > max(self._limits.read, self._limits.write):
            begin += f"; set local statement_timeout = '{timeout:.0f}s'"
        return begin

    def _detect_pooler(self, exc: BaseException) -> bool:
        """Whether an error shows that there is a pooler after all. From then on nothing is prepared."""
        if not isinstance(exc, postgres_pooler.SIGNS):
            return False
        if not self._pool.pooled:
            _log.warning("database pooler found", prepared_statements=False, reason=str(exc))
            self._pool.found_pooler()
        return True

    # --- Reading ---

    async def read(self, query: Query[T]) -> T:
        """Run a read, see `ccp.server.storage.Store`."""
        assert self._open, "the store is open"
        if isinstance(query, MarkedQuery) and query.batchable and self._batcher is not None:
            self._pool.refuse_while_silent(NOT_READ)
            return await self._batcher.run(iter(query))
        if isinstance(query, MarkedQuery) and query.long_running:
            self._pool.refuse_while_silent(NOT_READ)
            deadline = asyncio.get_running_loop().time() + self._limits.long_read
            await acquire(self._long_reading, deadline, NOT_READ)
            try:
                return await self._read(query, deadline)
            finally:
                self._long_reading.release()
        return await self._read(query)

    async def _fetch(self, statement: str, parameters: Row) -> Sequence[Row]:
        return await self._read(MarkedQuery(partial(_single, statement, parameters), "fetch", read_committed=True))

    async def _read(self, query: Query[T], deadline: float | None = None) -> T:
        retryable = isinstance(query, MarkedQuery)
        read_committed = isinstance(query, MarkedQuery) and query.read_committed
        long_running = isinstance(query, MarkedQuery) and query.long_running
        timeout = self._limits.long_read if long_running else self._limits.read
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout if deadline is None else deadline
        attempts = 0
        while True:
            connection, fresh = await self._take(deadline, NOT_READ)
            expiry = Expiry(loop, deadline, partial(self._pool.time_out, connection))
            cancelled, answered = False, True
            attempts += 1
            self._reading.add(connection)
            try:
                if read_committed and not self._pool.pooled and timeout <= self._limits.read:
                    return await _run(connection, iter(query), self._codec)
                level = "read committed" if read_committed else "repeatable read"
                await connection.execute(self._begin(f"isolation level {level} read only", timeout))
                result = await _run(connection, iter(query), self._codec)
                await connection.execute("commit")
                return result
            except asyncio.CancelledError:
                cancelled = True
                self._start(self._recover(connection))
                raise
            except Exception as exc:
                lost = is_lost(connection, exc)
                answered = not lost
                await _rollback(connection, exc, lost)
                # An idle connection may have died, and others too. The error of a fresh connection is final.
                passes = self._detect_pooler(exc) and attempts < _MAX_ATTEMPTS
                in_time = loop.time() < deadline
                if not (retryable and in_time and (passes or (lost and not fresh))):
                    translated = translate(exc, NOT_READ, lost=lost)
                    raise translated from translated.__cause__
            finally:
                expiry.cancel()
                self._reading.discard(connection)
                if not cancelled:
                    self._pool.give_back(connection, answered=answered)

    def reasons(self) -> list[str]:
        """Failing parts of the engine, see `ccp.server.storage.Store`."""
        return []

    def use(self) -> DatabaseUse:
        """Connections in use, see `ccp.server.storage.Store`."""
        waiting = self._writing.waiting + self._long_reading.waiting
        return self._pool.use(waiting)

    async def time(self) -> datetime | None:
        """The database server's clock, see `ccp.server.storage.Store`."""
        rows = await self._fetch("select clock_timestamp()", ())
        now: datetime = rows[0][0]
        return now

    async def _recover(self, connection: Connection) -> None:
        """Roll back after a cancelled caller. The driver has asked the server to cancel the statement."""
        loop = asyncio.get_running_loop()
        expiry = Expiry(loop, loop.time() + _ROLLBACK_TIMEOUT, connection.terminate)
        try:
            await connection.execute("rollback")
        except Exception:
            connection.terminate()
        finally:
            expiry.cancel()
            self._pool.give_back(connection, answered=False)

    # --- Writing ---

    async def write(self, query: Query[T]) -> T:
        """Run a write, see `ccp.server.storage.Store`."""
        assert self._open, "the store is open"
        long_running = isinstance(query, MarkedQuery) and query.long_running
        write = self._standby.begin(self._limits.long_write if long_running else self._limits.write)
        # In its own task: if the caller is cancelled, the write is still completed and the connection stays usable.
        self._start(self._write(query, write)).add_done_callback(write.ended)
        result: T = await write.outcome
        return result

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Retrieve it: a cancelled caller does not.

    async def _write(self, query: Query[T], write: Write) -> T:
        self._standby.refuse_while_waiting()  # Held commits may occupy every connection for writes.
        try:
            await acquire(self._writing, write.deadline, NOT_WRITTEN)
        except Unavailable:
            self._standby.refuse_while_waiting()
            raise
        try:
            return await self._transaction(query, write)
        except Unavailable as exc:
            raise await self._standby.explain(exc) from exc.__cause__
        finally:
            self._writing.release()

    async def _transaction(self, query: Query[T], write: Write) -> T:
        loop = asyncio.get_running_loop()
        attempts = 0
        while True:
            self._standby.refuse_while_waiting()
            connection, fresh = await self._take(write.deadline, NOT_WRITTEN)
            if write.late:  # Its deadline has passed, so nothing would cut the connection.
                self._pool.give_back(connection, answered=False)
                raise DatabaseUnavailable(NOT_WRITTEN)
            write.connection = connection
            begun, answered = False, True
            try:
                await connection.execute(self._begin("isolation level read committed", write.timeout))
                begun = True
                result = await _run(connection, iter(query), self._codec)
                write.committing = True
                await _commit(connection)
                return result
            except BaseException as exc:
                lost = is_lost(connection, exc)
                answered = not lost
                await _rollback(connection, exc, lost)
                in_time = loop.time() < write.deadline
                if lost and not begun and not fresh and in_time:
                    continue  # An idle connection had died; no statement was sent on it.
                attempts += 1
                passes = self._detect_pooler(exc) or isinstance(exc, CONFLICTS)
                if isinstance(exc, asyncpg.ReadOnlySQLTransactionError):
                    self._pool.drop_idle()  # They lead to the old primary; a new connection may find the current one.
                    passes = not fresh
                if not (passes and in_time and isinstance(query, MarkedQuery) and attempts < _MAX_ATTEMPTS):
                    translated = translate(exc, NOT_WRITTEN, lost=lost)
                    raise translated from translated.__cause__
            finally:
                write.connection, write.committing = None, False
                self._pool.give_back(connection, answered=answered)
            await asyncio.sleep(random.uniform(0.2, 1) * 0.01 * 2**attempts)  # noqa: S311  jitter

    async def _standby_is_waited_for(self) -> bool:
        return bool(await self._fetch(synchronous_standby.WAITING, ()))

    # --- Connections ---

    async def _take(self, deadline: float, sentence: str) -> tuple[Connection, bool]:
        """As `ConnectionPool.take`, with outages translated to Unavailable."""
        try:
            return await self._pool.take(deadline, sentence)
        except BaseException as exc:
            translated = translate(exc, sentence, lost=False)
            raise translated from translated.__cause__

    def _server_is_silent(self) -> None:
        """Cut every read at once: no answer will come. A write waits, because its commit may have been made."""
        self._standby.end_held()
        for connection in tuple(self._reading):
            connection.terminate()


def _single(statement: str, parameters: Row) -> Query[list[Row]]:
    rows = yield statement, parameters
    return rows


async def _run(connection: Connection, query: Query[T], codec: SecretCodec) -> T:
    try:
        statement, parameters = next(query)
        while True:
            rows: Any
            if statement is CODEC[0]:
                rows = [(codec,)]
            else:
                rows = await connection.fetch(statement, *parameters)  # Records, which read like tuples.
            statement, parameters = query.send(rows)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def _commit(connection: Connection) -> None:
    connection.warning = None
    try:
        status = await connection.execute("commit")
    except (asyncpg.TransactionRollbackError, asyncpg.IntegrityConstraintViolationError):
        raise  # The server has rolled back.
    except (*LOST, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        # A server that shuts down while it waits for a standby has committed nevertheless.
        raise UnconfirmedCommit from exc
    if status != "COMMIT":
        raise DatabaseUnavailable(NOT_WRITTEN)
    # If an operator cancels the wait for a standby, the server reports success with a warning.
    if connection.warning is not None:
        raise UnconfirmedCommit from DatabaseUnavailable(connection.warning)


async def _rollback(connection: Connection, exc: BaseException, lost: bool) -> None:
    """End the transaction of a connection, or terminate the connection."""
    # A read-only server has become a standby: the next connection may find the new primary.
    if lost or isinstance(exc, UnconfirmedCommit | asyncio.CancelledError | asyncpg.ReadOnlySQLTransactionError):
        connection.terminate()
    elif connection.is_in_transaction():
        try:
            await connection.execute("rollback")
        except BaseException as failure:
            connection.terminate()
            if not isinstance(failure, Exception):
                raise
