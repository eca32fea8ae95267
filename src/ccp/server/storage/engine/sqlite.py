"""Embedded storage engine: one SQLite file.

Lookups run in the event loop: in WAL mode they never wait for the writer and take some ten microseconds, less than
passing them to a thread. Batchable queries are queued and run once an iteration of the loop. Queries marked `long_read`
run in a thread with its own connection. Writes run in one thread with group commit
(`ccp.server.storage.engine.sqlite_writer`). Both threads are supervised (`ccp.server.runtime.threads`).
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ccp.errors import ConfigurationError, DatabaseUnavailable, Unavailable
from ccp.server.runtime.threads import Inbox, Job, JobThread, Outcome
from ccp.server.storage.engine import schema, sqlite_writer, stored_secrets
from ccp.server.storage.engine.query import MarkedQuery, Query, T
from ccp.server.storage.engine.secret_codec import SecretCodec
from ccp.server.storage.engine.sqlite_connection import connected, is_busy, is_outage
from ccp.server.storage.engine.sqlite_connection import run as run
from ccp.server.storage.engine.time_limits import NOT_CONFIRMED, NOT_READ, NOT_WRITTEN, TimeLimits
from ccp.server.storage.engine.use import DatabaseUse

_RETRY_DELAY: Final = 0.01


class SQLiteStore:
    """A `ccp.server.storage.Store` on a SQLite file."""

    def __init__(self, path: Path, limits: TimeLimits, codec: SecretCodec) -> None:
        self._path = path
        self._codec = codec
        self._limits = limits
        self._reader: sqlite3.Connection | None = None
        self._long_connection: sqlite3.Connection | None = None
        self._batch: list[tuple[Query[Any], asyncio.Future[Any]]] = []
        self._writer: JobThread | None = None
        self._long_reader: JobThread | None = None

    async def open(self) -> None:
        """Open the store, see `ccp.server.storage.Store`."""
        schema.check(f"sqlite:///{self._path}")
        try:
            # The event loop must not block on a lock: see `read`.
            self._reader = connected(self._path, busy_timeout=0)
            self._reader.execute("pragma query_only = on")
            self._writer = JobThread(
                "database writer",
                # Half for the write lock between processes, half for the file's own lock.
                sqlite_writer.serve(self._path, self._limits.write / 2, self._codec),
                not_started=NOT_WRITTEN,
                unconfirmed=NOT_CONFIRMED,
                unavailable=DatabaseUnavailable,
            )
            self._long_reader = JobThread(
                "database reader",
                self._serve_long,
                not_started=NOT_READ,
                unconfirmed=NOT_READ,
                expired=self._interrupt_long,
                unavailable=DatabaseUnavailable,
            )
            self._read(stored_secrets.state())  # Raises ConfigurationError without the keys.
            await self._writer.start()
            await self._long_reader.start()
        except sqlite3.Error as exc:
            await self.close()
            raise ConfigurationError(f"The database {self._path} cannot be opened: {exc}.") from exc
        except ConfigurationError:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the store, see `ccp.server.storage.Store`."""
        writer, self._writer = self._writer, None
        long_reader, self._long_reader = self._long_reader, None
        for thread in (writer, long_reader):
            if thread is not None:
                await thread.stop()
        if self._reader is not None:
            self._run_batch()
            self._reader.close()
            self._reader = None

    def reasons(self) -> list[str]:
        """Failing parts of the engine, see `ccp.server.storage.Store`."""
        threads = (thread for thread in (self._writer, self._long_reader) if thread is not None)
        return [reason for thread in threads for reason in thread.reasons()]

    async def read(self, query: Query[T]) -> T:
        """Run a read, see `ccp.server.storage.Store`."""
        if not isinstance(query, MarkedQuery):
            return self._read(query)
        if query.long_running:
            assert self._long_reader is not None, "the store is open"
            found: T = await self._long_reader.run(query, self._limits.long_read)
            return found
        deadline = None
        while True:
            try:
                return await self._enqueue(query) if query.batchable else self._read(query)
            except Unavailable as exc:
                # A process that was killed during a write leaves a WAL index that the next reader rebuilds. For some
                # milliseconds other readers find it locked.
                if not is_busy(exc.__cause__):
                    raise
                deadline = deadline or time.monotonic() + self._limits.read
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_RETRY_DELAY)

    def _enqueue(self, query: Query[T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        if not self._batch:
            loop.call_soon(self._run_batch)
        self._batch.append((query, result))
        return result

    def _run_batch(self) -> None:
        """Run the queries that were queued in one iteration of the event loop, back to back.

        Batching keeps the CPU caches warm: requests run in phases, each phase for all of them.
        """
        batch, self._batch = self._batch, []
        for query, result in batch:
            if not result.done():  # Otherwise its caller was cancelled.
                try:
                    result.set_result(self._read(query))
                except Exception as exc:
                    result.set_exception(exc)

    def _read(self, query: Query[T]) -> T:
        assert self._reader is not None, "the store is open"
        running = _start(query)
        try:
            if isinstance(query, MarkedQuery) and query.read_committed:
                return run(self._reader, running, self._codec)
            self._reader.execute("begin")  # A snapshot.
            try:
                return run(self._reader, running, self._codec)
            finally:
                self._reader.execute("rollback")
        except sqlite3.Error as exc:
            if not is_outage(exc):
                raise  # A defect.
            raise DatabaseUnavailable(NOT_READ) from exc

    async def write(self, change: Query[T]) -> T:
        """Run a write, see `ccp.server.storage.Store`."""
        assert self._writer is not None, "the store is open"
        long = isinstance(change, MarkedQuery) and change.long_running
        made: T = await self._writer.run(change, self._limits.long_write if long else self._limits.write)
        return made

    def use(self) -> DatabaseUse:
        """Threads in use, see `ccp.server.storage.Store`."""
        threads = [thread for thread in (self._writer, self._long_reader) if thread is not None]
        busy = sum(thread.is_busy for thread in threads)
        return DatabaseUse(busy, len(threads) - busy, len(threads), sum(thread.queued for thread in threads))

    async def time(self) -> datetime | None:
        """The database server's clock, see `ccp.server.storage.Store`."""
        return None

    def _serve_long(self, inbox: Inbox) -> None:
        """The thread that runs queries marked `long_read`, one after another."""
        connection = connected(self._path, self._limits.read)
        try:
            connection.execute("pragma query_only = on")
            self._long_connection = connection
            inbox.ready()
            while jobs := inbox.take(1):
                for job in jobs:
                    if job.claim():
                        inbox.finish([_run_job(connection, job, self._codec)])
        finally:
            self._long_connection = None
            connection.close()

    def _interrupt_long(self) -> None:
        """Interrupt the running query: its caller has given up."""
        connection = self._long_connection
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):  # It was closed in between.
                connection.interrupt()


def _start(query: Query[T]) -> Query[T]:
    """A generator of the query; a marked query starts from the beginning."""
    return iter(query) if isinstance(query, MarkedQuery) else query


def _run_job(connection: sqlite3.Connection, job: Job, codec: SecretCodec) -> Outcome:
    try:
        return job, run(connection, _start(job.work), codec), None
    except MemoryError:
        raise
    except Exception as exc:
        if not is_outage(exc):
            return job, None, exc
        unavailable = DatabaseUnavailable(NOT_READ)
        unavailable.__cause__ = exc
        return job, None, unavailable
