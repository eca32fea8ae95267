"""The embedded engine: one SQLite file.

Lookups run in the event loop: with WAL they never wait for the writer and take some ten microseconds, less than a
hand-over to a thread. Those that every request asks are put together, once a turn of the loop. Questions that are
marked `long_running` go to a thread with a connection of its own. Writes go to one thread, which commits them in groups
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

from ccp.errors import ConfigurationError, Unavailable
from ccp.server.runtime.threads import Inbox, Job, JobThread, Outcome
from ccp.server.storage.engine import schema, sqlite_writer
from ccp.server.storage.engine.query import MarkedQuery, Query, T
from ccp.server.storage.engine.sqlite_connection import connected, is_busy, is_outage
from ccp.server.storage.engine.sqlite_connection import run as run
from ccp.server.storage.engine.time_limits import NOT_CONFIRMED, NOT_READ, NOT_WRITTEN, REQUESTS, TimeLimits

_RETRY_DELAY: Final = 0.01


class SQLiteStore:
    """See `ccp.server.storage.Store`."""

    def __init__(self, path: Path, limits: TimeLimits = REQUESTS) -> None:
        self._path = path
        self._limits = limits
        self._reader: sqlite3.Connection | None = None
        self._long_connection: sqlite3.Connection | None = None
        self._asked: list[tuple[Query[Any], asyncio.Future[Any]]] = []
        self._writer: JobThread | None = None
        self._long_reader: JobThread | None = None

    async def open(self) -> None:
        schema.check(f"sqlite:///{self._path}")
        try:
            # The event loop must not sleep for a lock: see `read`.
            self._reader = connected(self._path, busy_timeout=0)
            self._reader.execute("pragma query_only = on")
            self._writer = JobThread(
                "database writer",
                # For a turn among the processes that write, and once more for the file's own lock.
                sqlite_writer.serve(self._path, self._limits.write / 2),
                not_started=NOT_WRITTEN,
                unconfirmed=NOT_CONFIRMED,
            )
            self._long_reader = JobThread(
                "database reader",
                self._serve_long,
                not_started=NOT_READ,
                unconfirmed=NOT_READ,
                expired=self._interrupt_long,
            )
            await self._writer.start()
            await self._long_reader.start()
        except sqlite3.Error as exc:
            await self.close()
            raise ConfigurationError(f"The database {self._path} cannot be opened: {exc}.") from exc

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        long_reader, self._long_reader = self._long_reader, None
        for thread in (writer, long_reader):
            if thread is not None:
                await thread.stop()
        if self._reader is not None:
            self._answer()
            self._reader.close()
            self._reader = None

    def reasons(self) -> list[str]:
        threads = (thread for thread in (self._writer, self._long_reader) if thread is not None)
        return [reason for thread in threads for reason in thread.reasons()]

    async def read(self, query: Query[T]) -> T:
        if not isinstance(query, MarkedQuery):
            return self._read(query)
        if query.long_running:
            assert self._long_reader is not None, "the store is open"
            found: T = await self._long_reader.run(query, self._limits.long_read)
            return found
        deadline = None
        while True:
            try:
                return await self._ask_together(query) if query.batchable else self._read(query)
            except Unavailable as exc:
                # A process that was killed in the middle of a write leaves an index of the log that has to be rebuilt;
                # the next one that reads does it, and for some milliseconds the others find it locked.
                if not is_busy(exc.__cause__):
                    raise
                deadline = deadline or time.monotonic() + self._limits.read
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_RETRY_DELAY)

    def _ask_together(self, query: Query[T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        asked: asyncio.Future[T] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._answer)
        self._asked.append((query, asked))
        return asked

    def _answer(self) -> None:
        """Put the questions of a turn of the event loop one after another.

        It is not they that become faster, but everything around them: a processor that does the same for one request
        after another finds in its caches what it needs for it.
        """
        waiting, self._asked = self._asked, []
        for query, asked in waiting:
            if not asked.done():  # Else whoever asked has gone.
                try:
                    asked.set_result(self._read(query))
                except Exception as exc:
                    asked.set_exception(exc)

    def _read(self, query: Query[T]) -> T:
        assert self._reader is not None, "the store is open"
        steps = _begun(query)
        try:
            if isinstance(query, MarkedQuery) and query.read_committed:
                return run(self._reader, steps)
            self._reader.execute("begin")  # A snapshot.
            try:
                return run(self._reader, steps)
            finally:
                self._reader.execute("rollback")
        except sqlite3.Error as exc:
            if not is_outage(exc):
                raise  # A mistake of ours.
            raise Unavailable(NOT_READ) from exc

    async def write(self, change: Query[T]) -> T:
        assert self._writer is not None, "the store is open"
        long = isinstance(change, MarkedQuery) and change.long_running
        made: T = await self._writer.run(change, self._limits.long_write if long else self._limits.write)
        return made

    async def time(self) -> datetime | None:
        return None

    def _serve_long(self, inbox: Inbox) -> None:
        """The thread for questions that are marked `long_running`, one after another."""
        connection = connected(self._path, self._limits.read)
        try:
            connection.execute("pragma query_only = on")
            self._long_connection = connection
            inbox.ready()
            while jobs := inbox.take(1):
                for job in jobs:
                    if job.claim():
                        inbox.finish([_answered(connection, job)])
        finally:
            self._long_connection = None
            connection.close()

    def _interrupt_long(self) -> None:
        """End the query that is under way: its caller has given up."""
        connection = self._long_connection
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):  # It was closed meanwhile.
                connection.interrupt()


def _begun(query: Query[T]) -> Query[T]:
    """The steps of a query, from the beginning where it can be put again."""
    return iter(query) if isinstance(query, MarkedQuery) else query


def _answered(connection: sqlite3.Connection, job: Job) -> Outcome:
    try:
        return job, run(connection, _begun(job.work)), None
    except MemoryError:
        raise
    except Exception as exc:
        if not is_outage(exc):
            return job, None, exc
        unavailable = Unavailable(NOT_READ)
        unavailable.__cause__ = exc
        return job, None, unavailable
