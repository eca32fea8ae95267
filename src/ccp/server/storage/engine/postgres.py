"""The engine for many workers and machines: a PostgreSQL server, with or without Citus.

A write is one transaction at READ COMMITTED: it locks the rows that it decides by, in one order, and reads what they
guard only afterwards. A read that is marked `read_committed` costs one round trip for each of its statements; every
other read sees one snapshot.

Each worker keeps a few connections (`ccp.server.storage.engine.postgres_pool`), some of which only reads may use.
Statements are prepared once on each connection; behind a pooler each time, and every question has a transaction (see
`ccp.server.storage.engine.postgres_pooler`). A read or a change that is not answered within its time limit
(`ccp.server.storage.engine.time_limits`) raises Unavailable, and its connection is cut.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Coroutine, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import asyncpg
import structlog

from ccp.errors import CCPError, ConfigurationError, FieldError, Unavailable
from ccp.server.storage.engine import postgres_pooler, postgres_tls, schema_version, synchronous_standby
from ccp.server.storage.engine.postgres_hosts import COMMAND_TIMEOUT, Connection, Hosts
from ccp.server.storage.engine.postgres_pool import LOST, ConnectionPool, Expiry, acquire
from ccp.server.storage.engine.query import MarkedQuery, Query, Row, SerializationConflict, T
from ccp.server.storage.engine.query_batching import QueryBatcher
from ccp.server.storage.engine.synchronous_standby import StandbyWatch, Write
from ccp.server.storage.engine.time_limits import NOT_CONFIRMED, NOT_READ, NOT_WRITTEN, REQUESTS, TimeLimits

_log = structlog.get_logger("ccp.server.storage")

OLDEST_SERVER: Final = 15
_CONNECT_TIMEOUT: Final = 5.0  # At start and for commands, for each host.
_OPEN_TIMEOUT: Final = 15.0
_ROLLBACK_TIMEOUT: Final = 1.0  # For a connection whose user has gone.
_TRIES: Final = 5

_SETTINGS: Final = {
    # The server says so before the time limit of a change cuts the connection.
    "lock_timeout": "4s",
    # A worker that was stopped in the middle of a change must not keep its locks; longer than any change may take.
    "idle_in_transaction_session_timeout": "6s",
    "jit": "off",
    # A contract of 4 KB takes less than half the time to store than with the server's own default.
    "default_toast_compression": "lz4",
    "synchronous_commit": "on",
}
# Where no pooler gives the session to others: the server ends what is asked for by a worker that has gone.
_OF_SESSION: Final = {
    "client_connection_check_interval": "1s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
# Only what the server knows (not every one was built with lz4); and where a change waits for a standby too, it goes on
# doing so.
_KNOWN: Final = """
select known.name, wanted.value
from unnest($1::text[], $2::text[]) as wanted (name, value) join pg_settings known on known.name = wanted.name
where (known.vartype <> 'enum' or wanted.value = any (known.enumvals))
    and (known.name <> 'synchronous_commit' or known.setting = 'off')
"""

_IN_THE_WAY: Final = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InvalidCachedStatementError,
    SerializationConflict,
)
"""Another transaction was in the way, or a migration: the same change may well succeed at once."""
_UNAVAILABLE: Final = (
    *LOST,
    *_IN_THE_WAY,
    asyncpg.InsufficientResourcesError,  # Disk full, out of memory, too many connections.
    asyncpg.OperatorInterventionError,  # Shutting down, starting up, cancelled.
    asyncpg.PostgresSystemError,  # Input or output failed.
    asyncpg.TransactionRollbackError,
    asyncpg.InvalidTransactionStateError,  # Read-only, since the server became a standby; idle for too long.
    asyncpg.LockNotAvailableError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    *postgres_pooler.SIGNS,
)
"""What passes by, or what an operator brings to an end; everything else is a mistake of ours."""


class PostgresStore:
    """See `ccp.server.storage.Store`. connections: the most that this process uses at a time; changes use most of them
    only."""

    def __init__(self, url: str, connections: int, limits: TimeLimits = REQUESTS) -> None:
        self._url = url
        self._limits = limits
        self._pool = ConnectionPool(Hosts(url), connections, limits, self._server_is_silent)
        self._standby = StandbyWatch(self._standby_is_waited_for, self._pool.time_out)
        # So that reads go on while every change waits, for a standby, say.
        self._writers = connections - max(1, connections // 4) or 1
        # So that lists and counts, each of which may take a minute, leave connections to the lookups of requests: of
        # eight or more at least one, while every change waits too.
        self._long_readers = max(1, connections // 8)
        self._writing = asyncio.Semaphore(self._writers)
        self._long_reading = asyncio.Semaphore(self._long_readers)
        self._work: set[asyncio.Task[Any]] = set()
        self._reading: set[Connection] = set()
        self._batcher: QueryBatcher | None = None
        self._settings: dict[str, str] = {}
        self._open = False

    async def open(self) -> None:
        connection = await connect(self._url)
        loop = asyncio.get_running_loop()
        limit = Expiry(loop, loop.time() + _OPEN_TIMEOUT, connection.terminate)
        try:
            pooled = await postgres_pooler.is_between(connection)
            wanted = {
                **_SETTINGS,
                **({} if pooled else _OF_SESSION),
                "statement_timeout": f"{max(self._limits.read, self._limits.write):.0f}s",
            }
            async with connection.transaction():
                schema_version.check_revision(await revision(connection))
                known = await connection.fetch(_KNOWN, list(wanted), list(wanted.values()))
                self._settings = {name: value for name, value in known}  # noqa: C416  records are no tuples
                # A cluster plans each statement anew and sends only those of one table straight to where the rows are.
                if await connection.fetchval("select 1 from pg_extension where extname = 'citus'") is None:
                    self._batcher = QueryBatcher(self._fetch, self._limits.read)
            await connection.close(timeout=_CONNECT_TIMEOUT)
        except LOST as exc:
            raise ConfigurationError(
                "The database server went away, or does not answer, while the pool starts."
            ) from exc
        finally:
            limit.cancel()
            connection.terminate()
        if pooled:
            _log.info("database pooler found", prepared_statements=False)
        self._writing = asyncio.Semaphore(self._writers)
        self._long_reading = asyncio.Semaphore(self._long_readers)
        self._pool.open(self._settings, pooled=pooled)
        self._open = True

    async def close(self) -> None:
        self._open = False
        if self._batcher is not None:
            await self._batcher.close()
        self._standby.close()
        if self._work:
            await asyncio.wait(self._work)
        await self._pool.close()

    def _begin(self, how: str, timeout: float) -> str:
        """How a transaction begins; behind a pooler with the settings that else are those of the session.

        timeout: of a statement, where it is longer than that of the session.
        """
        begin = f"begin {how}"
        if self._pool.pooled:
            begin += f"; {postgres_pooler.settings_of_transaction(self._settings)}"
        if timeout > max(self._limits.read, self._limits.write):
            begin += f"; set local statement_timeout = '{timeout:.0f}s'"
        return begin

    def _finds_pooler(self, exc: BaseException) -> bool:
        """Whether an answer of the server tells that there is a pooler after all. From now on nothing is prepared."""
        if not isinstance(exc, postgres_pooler.SIGNS):
            return False
        if not self._pool.pooled:
            _log.warning("database pooler found", prepared_statements=False, reason=str(exc))
            self._pool.found_pooler()
        return True

    # --- Reading ---

    async def read(self, query: Query[T]) -> T:
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
        return await self._read(MarkedQuery(partial(_asked, statement, parameters), "fetch", read_committed=True))

    async def _read(self, query: Query[T], deadline: float | None = None) -> T:
        again = isinstance(query, MarkedQuery)
        read_committed = isinstance(query, MarkedQuery) and query.read_committed
        long_running = isinstance(query, MarkedQuery) and query.long_running
        timeout = self._limits.long_read if long_running else self._limits.read
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout if deadline is None else deadline
        tries = 0
        while True:
            connection, fresh = await self._take(deadline, NOT_READ)
            expiry = Expiry(loop, deadline, partial(self._pool.time_out, connection))
            cancelled, answered = False, True
            tries += 1
            self._reading.add(connection)
            try:
                if read_committed and not self._pool.pooled and timeout <= self._limits.read:
                    return await _run(connection, iter(query))
                level = "read committed" if read_committed else "repeatable read"
                await connection.execute(self._begin(f"isolation level {level} read only", timeout))
                answer = await _run(connection, iter(query))
                await connection.execute("commit")
                return answer
            except asyncio.CancelledError:
                cancelled = True
                self._start(self._recover(connection))
                raise
            except Exception as exc:
                lost = _lost(connection, exc)
                answered = not lost
                await _leave(connection, exc, lost)
                # A connection that died while it was idle: there may be more of them, but a fresh one says the truth.
                passes = self._finds_pooler(exc) and tries < _TRIES
                in_time = loop.time() < deadline
                if not (again and in_time and (passes or (lost and not fresh))):
                    told = _told(exc, NOT_READ, lost)
                    raise told from told.__cause__
            finally:
                expiry.cancel()
                self._reading.discard(connection)
                if not cancelled:
                    self._pool.give_back(connection, answered=answered)

    def reasons(self) -> list[str]:
        return []

    async def time(self) -> datetime | None:
        rows = await self._fetch("select clock_timestamp()", ())
        at: datetime = rows[0][0]
        return at

    async def _recover(self, connection: Connection) -> None:
        """Take back a connection whose user has gone; the driver has asked the server to stop what it was doing."""
        loop = asyncio.get_running_loop()
        expiry = Expiry(loop, loop.time() + _ROLLBACK_TIMEOUT, connection.terminate)
        try:
            await connection.execute("rollback")
        except Exception:
            connection.terminate()
        finally:
            expiry.cancel()
            self._pool.give_back(connection, answered=False)

    # --- Changes ---

    async def write(self, change: Query[T]) -> T:
        assert self._open, "the store is open"
        long = isinstance(change, MarkedQuery) and change.long_running
        write = self._standby.begin(self._limits.long_write if long else self._limits.write)
        # In a task of its own: when the caller goes, the change is still made as a whole, and the connection is good.
        self._start(self._write(change, write)).add_done_callback(write.ended)
        result: T = await write.outcome
        return result

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._work.discard(task)
        if not task.cancelled():
            task.exception()  # Where the caller has gone nobody else looks at it.

    async def _write(self, change: Query[T], write: Write) -> T:
        self._standby.refuse_while_waiting()  # Held commits may have taken every place.
        try:
            await acquire(self._writing, write.deadline, NOT_WRITTEN)
        except Unavailable:
            self._standby.refuse_while_waiting()
            raise
        try:
            return await self._change(change, write)
        except Unavailable as exc:
            raise await self._standby.explain(exc) from exc.__cause__
        finally:
            self._writing.release()

    async def _change(self, change: Query[T], write: Write) -> T:
        loop = asyncio.get_running_loop()
        tries = 0
        while True:
            self._standby.refuse_while_waiting()
            connection, fresh = await self._take(write.deadline, NOT_WRITTEN)
            if write.late:  # Nothing would cut the connection any more.
                self._pool.give_back(connection, answered=False)
                raise Unavailable(NOT_WRITTEN)
            write.connection = connection
            begun, answered = False, True
            try:
                await connection.execute(self._begin("isolation level read committed", write.timeout))
                begun = True
                result = await _run(connection, iter(change))
                write.committing = True
                await _commit(connection)
                return result
            except BaseException as exc:
                lost = _lost(connection, exc)
                answered = not lost
                await _leave(connection, exc, lost)
                in_time = loop.time() < write.deadline
                if lost and not begun and not fresh and in_time:
                    continue  # It died while it was idle, and nothing was asked of it.
                tries += 1
                passes = self._finds_pooler(exc) or isinstance(exc, _IN_THE_WAY)
                if isinstance(exc, asyncpg.ReadOnlySQLTransactionError):
                    self._pool.drop_idle()  # They lead to the same server; a new one may find the primary of now.
                    passes = not fresh
                if not (passes and in_time and isinstance(change, MarkedQuery) and tries < _TRIES):
                    told = _told(exc, NOT_WRITTEN, lost)
                    raise told from told.__cause__
            finally:
                write.connection, write.committing = None, False
                self._pool.give_back(connection, answered=answered)
            await asyncio.sleep(random.uniform(0.2, 1) * 0.01 * 2**tries)  # noqa: S311  lets the other one pass

    async def _standby_is_waited_for(self) -> bool:
        return bool(await self._fetch(synchronous_standby.WAITING, ()))

    # --- Connections ---

    async def _take(self, deadline: float, sentence: str) -> tuple[Connection, bool]:
        """As `ConnectionPool.take`; whatever keeps a connection from being had is Unavailable."""
        try:
            return await self._pool.take(deadline, sentence)
        except BaseException as exc:
            told = _told(exc, sentence, lost=False)
            raise told from told.__cause__

    def _server_is_silent(self) -> None:
        """No read has an answer to wait for, however long it may take. A change waits: its commit may have one."""
        self._standby.end_held()
        for connection in tuple(self._reading):
            connection.terminate()


class _Unconfirmed(Exception):
    """The connection was lost between the request to commit and the answer."""


def _asked(statement: str, parameters: Row) -> Query[list[Row]]:
    rows = yield statement, parameters
    return rows


async def _run(connection: Connection, steps: Query[T]) -> T:
    try:
        statement, parameters = next(steps)
        while True:
            rows: Any = await connection.fetch(statement, *parameters)  # Records, which are read as tuples are.
            statement, parameters = steps.send(rows)
    except StopIteration as stop:
        answer: T = stop.value
        return answer


async def _commit(connection: Connection) -> None:
    connection.warning = None
    try:
        status = await connection.execute("commit")
    except (asyncpg.TransactionRollbackError, asyncpg.IntegrityConstraintViolationError):
        raise  # The server says that it did not.
    except (*LOST, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        # A server that shuts down while it waits for a standby has made the change all the same.
        raise _Unconfirmed from exc
    if status != "COMMIT":
        raise Unavailable(NOT_WRITTEN)
    if connection.warning is not None:  # An operator may have cancelled the wait for a standby: that is a success too.
        raise _Unconfirmed from Unavailable(connection.warning)


def _lost(connection: Connection, exc: BaseException) -> bool:
    return isinstance(exc, LOST) or connection.is_closed()


async def _leave(connection: Connection, exc: BaseException, lost: bool) -> None:
    """Bring a connection out of its transaction, or give it up."""
    if lost or isinstance(exc, _Unconfirmed | asyncio.CancelledError | asyncpg.ReadOnlySQLTransactionError):
        connection.terminate()  # One to a server that became a standby too: the next one may find the new primary.
    elif connection.is_in_transaction():
        try:
            await connection.execute("rollback")
        except BaseException as failure:
            connection.terminate()
            if not isinstance(failure, Exception):
                raise


def _told(exc: BaseException, sentence: str, lost: bool) -> BaseException:
    """Deliberate errors as they are; what passes by as Unavailable; mistakes of ours as they are."""
    told: CCPError
    if isinstance(exc, _Unconfirmed):
        told = Unavailable(NOT_CONFIRMED)
        told.__cause__ = exc.__cause__
        return told
    if isinstance(exc, asyncpg.CharacterNotInRepertoireError):
        told = FieldError("A text contains a character that cannot be stored (U+0000).")
    elif isinstance(exc, _UNAVAILABLE) or (lost and isinstance(exc, asyncpg.InterfaceError | asyncpg.PostgresError)):
        told = Unavailable(sentence)
    else:
        return exc
    told.__cause__ = exc
    return told


# --- Connections of commands ------------------------------------------------------------------------------------------


async def connect(url: str, statement_timeout: float | None = COMMAND_TIMEOUT) -> Connection:
    """A connection for a command or at start. It prepares nothing under a name; a pooler may stand before the server,
    so every statement but `begin` and the like needs a transaction around it.

    statement_timeout: seconds; None for a statement whose time grows with the database, such as one of a migration.
    Raises ConfigurationError, which tells the operator what is wrong.
    """
    try:
        connection = await Hosts(url).connect(_CONNECT_TIMEOUT, prepare=False, statement_timeout=statement_timeout)
    except (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        OSError,
        TimeoutError,
        ValueError,
    ) as exc:
        raise ConfigurationError(_why_not(exc, url)) from exc
    server = connection.get_server_version()
    encoding = connection.get_settings().server_encoding
    problem = None
    if server.major < OLDEST_SERVER:
        problem = f"The database server is PostgreSQL {server.major}; {OLDEST_SERVER} or newer is needed."
    elif encoding.upper() != "UTF8":
        problem = f"The database's encoding is {encoding}; it has to be UTF8."
    if problem is not None:
        connection.terminate()
        raise ConfigurationError(problem)
    return connection


def _why_not(exc: Exception, url: str) -> str:
    """Never with the URL itself, which may hold a password."""
    if isinstance(exc, asyncpg.TargetServerAttributeNotMatched):
        return "None of the hosts in the database URL accepts writes now (target_session_attrs)."
    if isinstance(exc, asyncpg.PostgresError):
        return f"The database server refuses the connection: {exc}."
    if isinstance(exc, asyncpg.InterfaceError) and "certificate" in str(exc):
        return f"The database server's certificate cannot be verified: {exc}."
    if isinstance(exc, asyncpg.InterfaceError | ValueError) and not isinstance(exc, OSError):
        return "The database URL cannot be used; it has the form postgresql://USER:PASSWORD@HOST:PORT/NAME."
    if isinstance(exc, TimeoutError):
        return f"The database server does not answer within {_CONNECT_TIMEOUT:.0f} seconds."
    if isinstance(exc, ssl.SSLCertVerificationError):
        told = f"The database server's certificate is not accepted: {exc.verify_message}."
        if postgres_tls.uses_system_cas(url):
            told += " Without sslrootcert=FILE in the URL the CAs of the system count."
        return told
    if isinstance(exc, ssl.SSLError):
        return f"The database server's TLS is not accepted: {exc.reason or exc}."
    return f"The database server cannot be reached: {getattr(exc, 'strerror', None) or exc}."


# --- The schema ------------------------------------------------------------------------------------------------------


async def revision(connection: Connection) -> str | None:
    """The revision of the database, or None where there is no schema yet. Raises ConfigurationError."""
    if await connection.fetchval("select to_regclass('alembic_version')") is None:
        return None
    try:
        found = await connection.fetch("select version_num from alembic_version")
    except asyncpg.PostgresError as exc:
        raise ConfigurationError(f"The database cannot be read: {exc}.") from exc
    return schema_version.only_revision("The database", (row[0] for row in found))


async def warnings_of(url: str) -> tuple[str, ...]:
    """What an operator should know of a server that works all the same. Raises ConfigurationError."""
    connection = await connect(url)
    try:
        async with connection.transaction():
            fsync = await connection.fetchval("show fsync")
        if fsync == "off":
            return ("fsync is off on the database server: a crash there loses contracts that were acknowledged.",)
        return ()
    finally:
        await connection.close()


async def revision_of(url: str) -> str | None:
    """As `revision`, on a connection of its own."""
    connection = await connect(url)
    try:
        async with connection.transaction():
            return await revision(connection)
    finally:
        await connection.close()
