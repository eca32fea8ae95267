"""The engine for many workers and machines: a PostgreSQL server, with or without Citus.

A change is one transaction at READ COMMITTED: questions lock the rows that they decide by, in one order, and look at
what these guard only afterwards. A question that is marked `newest` costs one round trip for each of its statements;
every other one sees one snapshot.

Each worker keeps a few connections. They are used in turns without anything being reset between two uses: nothing
here leaves a trace on a session. Statements are prepared once on each connection; behind a pooler each time, and every
question has a transaction (see `ccp.store.pooler`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Coroutine, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeAlias
from weakref import WeakSet

import asyncpg
import structlog

from ccp.errors import CCPError, ConfigurationError, FieldError, Unavailable
from ccp.store import pooler, postgres_tls, revisions
from ccp.store.gathering import Gathering
from ccp.store.steps import Overtaken, Question, Row, Steps, T

_log = structlog.get_logger("ccp.store")

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

OLDEST_SERVER: Final = 15
_CONNECT_SECONDS = 5.0
_WAIT_SECONDS = 5.0  # For a connection that others use, and for a row that others have locked.
_STATEMENT_SECONDS = 60.0  # A server that is cut off does not say so.
_IDLE_SECONDS = 300.0  # Networks forget connections on which nothing was said for a while.
_TRIES = 5

_SETTINGS: Final = {
    "lock_timeout": f"{_WAIT_SECONDS:.0f}s",
    "statement_timeout": f"{_STATEMENT_SECONDS:.0f}s",
    # A worker that was stopped in the middle of a change must not keep its locks.
    "idle_in_transaction_session_timeout": "15s",
    "jit": "off",
    # A contract of 4 KB takes less than half the time to store than with the server's own default.
    "default_toast_compression": "lz4",
    "synchronous_commit": "on",
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
    Overtaken,
)
"""Another transaction was in the way, or a migration: the same change may well succeed at once."""
# The driver's own error comes where a server that goes says so in the middle of something else.
_LOST: Final = (asyncpg.PostgresConnectionError, asyncpg.InternalClientError, OSError, TimeoutError)
"""Nobody knows what the server made of the last statement, and the connection is of no more use."""
_UNAVAILABLE: Final = (
    *_LOST,
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
    *pooler.SIGNS,
)
"""What passes by, or what an operator brings to an end; everything else is a mistake of ours."""

_NOT_NOW: Final = "The database does not answer now; try again."
_NOT_WRITTEN: Final = "The database cannot write now; nothing was changed, try again."
_NOT_CONFIRMED: Final = "The database did not confirm the change, which may have been made or not; try again."


class PostgresStore:
    """See `ccp.store.Store`. connections: the most that this process uses at a time."""

    def __init__(self, url: str, connections: int) -> None:
        self._url = url
        self._most = connections
        self._room = asyncio.Semaphore(connections)
        # The one that was used last is used next: its statements are prepared, and the others may go.
        self._idle: list[tuple[Connection, float]] | None = None
        self._work: set[asyncio.Task[Any]] = set()
        self._gathering: Gathering | None = None
        self._pooled = False
        self._preparing: WeakSet[Connection] = WeakSet()
        self._settings: dict[str, str] = {}

    async def open(self) -> None:
        connection = await connect(self._url)
        try:
            self._pooled = await pooler.is_between(connection)
            async with connection.transaction():
                revisions.check_revision(await revision(connection))
                known = await connection.fetch(_KNOWN, list(_SETTINGS), list(_SETTINGS.values()))
                self._settings = {name: value for name, value in known}  # noqa: C416  records are no tuples
                # A cluster plans each statement anew and sends only those of one table straight to where the rows are.
                if await connection.fetchval("select 1 from pg_extension where extname = 'citus'") is None:
                    self._gathering = Gathering(self._fetch)
            await connection.close(timeout=_CONNECT_SECONDS)
        except BaseException:
            connection.terminate()
            raise
        if self._pooled:
            _log.info("database pooler found", prepared_statements=False)
        self._room = asyncio.Semaphore(self._most)
        self._idle = []

    def _begin(self, how: str) -> str:
        """How a transaction begins; behind a pooler with the settings that else are those of the session."""
        begin = f"begin {how}"
        return f"{begin}; {pooler.settings_of_transaction(self._settings)}" if self._pooled else begin

    def _finds_pooler(self, exc: BaseException) -> bool:
        """Whether an answer of the server tells that there is a pooler after all. From now on nothing is prepared."""
        if not isinstance(exc, pooler.SIGNS):
            return False
        if not self._pooled:
            _log.warning("database pooler found", prepared_statements=False, reason=str(exc))
            self._pooled = True
            idle, self._idle = self._idle, []
            for connection, _ in idle or ():
                connection.terminate()
        return True

    async def close(self) -> None:
        if self._gathering is not None:
            await self._gathering.close()
        idle, self._idle = self._idle, None
        if self._work:
            await asyncio.wait(self._work)
        for connection, _ in idle or ():
            with contextlib.suppress(*_LOST, asyncpg.InterfaceError):
                await connection.close(timeout=_CONNECT_SECONDS)

    async def read(self, question: Steps[T]) -> T:
        if isinstance(question, Question) and question.together and self._gathering is not None:
            return await self._gathering.answer(iter(question))
        return await self._read(question)

    async def _fetch(self, statement: str, parameters: Row) -> Sequence[Row]:
        return await self._read(Question(partial(_asked, statement, parameters), "fetch", newest=True))

    async def _read(self, question: Steps[T]) -> T:
        again = isinstance(question, Question)
        tries = 0
        while True:
            connection, fresh = await self._take(_NOT_NOW)
            cancelled = False
            tries += 1
            try:
                newest = isinstance(question, Question) and question.newest
                if newest and not self._pooled:
                    return await _run(connection, iter(question))
                level = "read committed" if newest else "repeatable read"
                await connection.execute(self._begin(f"isolation level {level} read only"))
                answer = await _run(connection, iter(question))
                await connection.execute("commit")
                return answer
            except asyncio.CancelledError:
                cancelled = True
                self._start(self._recover(connection))
                raise
            except Exception as exc:
                lost = _lost(connection, exc)
                await _leave(connection, exc, lost)
                # A connection that died while it was idle: there may be more of them, but a fresh one says the truth.
                passes = self._finds_pooler(exc) and tries < _TRIES
                if not (again and (passes or (lost and not fresh))):
                    told = _told(exc, _NOT_NOW, lost)
                    raise told from told.__cause__
            finally:
                if not cancelled:
                    self._give_back(connection)

    async def write(self, change: Steps[T]) -> T:
        # In a task of its own: when the caller goes, the change is still made as a whole, and the connection is good.
        return await asyncio.shield(self._start(self._write(change)))

    def reasons(self) -> list[str]:
        return []

    async def time(self) -> datetime | None:
        rows = await self._fetch("select clock_timestamp()", ())
        at: datetime = rows[0][0]
        return at

    async def _recover(self, connection: Connection) -> None:
        """Take back a connection whose user has gone; the driver has asked the server to stop what it was doing."""
        try:
            await connection.execute("rollback")
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
            connection.terminate()
        finally:
            self._give_back(connection)

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._work.discard(task)
        if not task.cancelled():
            task.exception()  # Where the caller has gone nobody else looks at it.

    async def _write(self, change: Steps[T]) -> T:
        tries = 0
        while True:
            connection, fresh = await self._take(_NOT_WRITTEN)
            begun = False
            try:
                await connection.execute(self._begin("isolation level read committed"))
                begun = True
                result = await _run(connection, iter(change))
                await _commit(connection)
                return result
            except BaseException as exc:
                lost = _lost(connection, exc)
                await _leave(connection, exc, lost)
                if lost and not begun and not fresh:
                    continue  # It died while it was idle, and nothing was asked of it.
                tries += 1
                passes = self._finds_pooler(exc) or isinstance(exc, _IN_THE_WAY)
                if not (passes and isinstance(change, Question) and tries < _TRIES):
                    told = _told(exc, _NOT_WRITTEN, lost)
                    raise told from told.__cause__
            finally:
                self._give_back(connection)
            await asyncio.sleep(random.uniform(0.2, 1) * 0.01 * 2**tries)  # noqa: S311  lets the other one pass

    async def _take(self, otherwise: str) -> tuple[Connection, bool]:
        """A connection that nobody else uses, and whether it was made just now. Raises Unavailable."""
        assert self._idle is not None, "the store is open"
        if self._room.locked():
            try:
                async with asyncio.timeout(_WAIT_SECONDS):
                    await self._room.acquire()
            except TimeoutError as exc:
                raise Unavailable(otherwise) from exc
        else:
            await self._room.acquire()
        try:
            while self._idle:
                connection, since = self._idle.pop()
                if connection.is_closed():
                    continue
                if asyncio.get_running_loop().time() - since < _IDLE_SECONDS:
                    return connection, False
                connection.terminate()
            prepare = not self._pooled
            connection = await _connected(self._url, prepare=prepare)
            if prepare:
                self._preparing.add(connection)
                try:
                    await connection.execute(_session(self._settings))
                except BaseException:
                    connection.terminate()
                    raise
            return connection, True
        except BaseException as exc:
            self._room.release()
            told = _told(exc, otherwise, lost=False)
            raise told from told.__cause__

    def _give_back(self, connection: Connection) -> None:
        if self._idle is None or (self._pooled and connection in self._preparing):
            connection.terminate()
        elif not connection.is_closed():
            self._idle.append((connection, asyncio.get_running_loop().time()))
        self._room.release()


class _Unconfirmed(Exception):
    """The connection was lost between the request to commit and the answer."""


def _asked(statement: str, parameters: Row) -> Steps[list[Row]]:
    rows = yield statement, parameters
    return rows


async def _run(connection: Connection, steps: Steps[T]) -> T:
    try:
        statement, parameters = next(steps)
        while True:
            rows: Any = await connection.fetch(statement, *parameters)  # Records, which are read as tuples are.
            statement, parameters = steps.send(rows)
    except StopIteration as stop:
        answer: T = stop.value
        return answer


async def _commit(connection: Connection) -> None:
    try:
        await connection.execute("commit")
    except (asyncpg.TransactionRollbackError, asyncpg.IntegrityConstraintViolationError):
        raise  # The server says that it did not.
    except (*_LOST, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        # A server that shuts down while it waits for a standby has made the change all the same.
        raise _Unconfirmed from exc


def _lost(connection: Connection, exc: BaseException) -> bool:
    return isinstance(exc, _LOST) or connection.is_closed()


async def _leave(connection: Connection, exc: BaseException, lost: bool) -> None:
    """Bring a connection out of its transaction, or give it up."""
    if lost or isinstance(exc, _Unconfirmed | asyncio.CancelledError | asyncpg.ReadOnlySQLTransactionError):
        connection.terminate()  # One to a server that became a standby too: the next one may find the new primary.
    elif connection.is_in_transaction():
        try:
            await connection.execute("rollback")
        except Exception:
            connection.terminate()


def _told(exc: BaseException, sentence: str, lost: bool) -> BaseException:
    """Deliberate errors as they are; what passes by as Unavailable; mistakes of ours as they are."""
    told: CCPError
    if isinstance(exc, _Unconfirmed):
        told = Unavailable(_NOT_CONFIRMED)
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


# --- Connections -----------------------------------------------------------------------------------------------------


async def _connected(url: str, *, prepare: bool) -> Connection:
    """prepare: keep statements prepared on the connection, under names."""
    return await asyncpg.connect(
        url,
        timeout=_CONNECT_SECONDS,
        command_timeout=_STATEMENT_SECONDS + 5,
        statement_cache_size=1000 if prepare else 0,
        max_cached_statement_lifetime=0,
        server_settings={"application_name": "opnc-ccp"},
        **postgres_tls.options(url),
    )


def _session(settings: Mapping[str, str]) -> str:
    """Statements that set these for the session. Values are ours."""
    return "; ".join(f"set {name} = '{value}'" for name, value in settings.items())


async def connect(url: str) -> Connection:
    """A connection for a command or at start. It prepares nothing under a name; a pooler may stand before the server,
    so every statement but `begin` and the like needs a transaction around it.

    Raises ConfigurationError, which tells the operator what is wrong.
    """
    try:
        connection = await _connected(url, prepare=False)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, ValueError) as exc:
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
    if isinstance(exc, asyncpg.PostgresError):
        return f"The database server refuses the connection: {exc}."
    if isinstance(exc, asyncpg.InterfaceError) and "certificate" in str(exc):
        return f"The database server's certificate cannot be verified: {exc}."
    if isinstance(exc, asyncpg.InterfaceError | ValueError) and not isinstance(exc, OSError):
        return "The database URL cannot be used; it has the form postgresql://USER:PASSWORD@HOST:PORT/NAME."
    if isinstance(exc, TimeoutError):
        return f"The database server does not answer within {_CONNECT_SECONDS:.0f} seconds."
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
    return revisions.only_revision("The database", (row[0] for row in found))


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
