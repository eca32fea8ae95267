"""The embedded engine: one SQLite file.

Reads run in the event loop: with WAL they never wait for the writer and take some ten microseconds, less than a
hand-over to a thread. Those that every request asks are put together, once a turn of the loop. Writes go to one thread,
which takes everything that waits, runs it in one transaction (each change within its own savepoint) and commits once;
with synchronous = FULL a commit is on disk before it is acknowledged, and the group shares the cost.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from concurrent.futures import Future
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from ccp.errors import CCPError, ConfigurationError, Unavailable
from ccp.store import schema
from ccp.store.steps import Question, Steps, T
from ccp.store.turns import Turns

_GROUP = 64  # Changes in one commit: a longer group gains little and lets the first one wait longer.
_BUSY_SECONDS = 5.0  # Other processes write to the same file; each holds the lock for one group, in turns.


class SQLiteStore:
    """See `ccp.store.Store`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: sqlite3.Connection | None = None
        self._writer: threading.Thread | None = None
        self._asked: list[tuple[Steps[Any], asyncio.Future[Any]]] = []
        self._changes: queue.SimpleQueue[tuple[Steps[Any], Future[Any]] | None] = queue.SimpleQueue()

    async def open(self) -> None:
        schema.check(f"sqlite:///{self._path}")
        ready: Future[None] = Future()
        try:
            self._reader = _connection(self._path)
            self._reader.execute("pragma query_only = on")
            self._writer = threading.Thread(target=self._write_groups, args=(ready,), name="sqlite-writer", daemon=True)
            self._writer.start()
            await asyncio.wrap_future(ready)
        except sqlite3.Error as exc:
            await self.close()
            raise ConfigurationError(f"The database {self._path} cannot be opened: {exc}.") from exc

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            self._changes.put(None)
            await asyncio.to_thread(writer.join)
        if self._reader is not None:
            self._answer()
            self._reader.close()
            self._reader = None

    async def read(self, question: Steps[T]) -> T:
        if not isinstance(question, Question) or not question.together:
            return self._read(question)
        loop = asyncio.get_running_loop()
        asked: asyncio.Future[T] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._answer)
        self._asked.append((question, asked))
        return await asked

    def _answer(self) -> None:
        """Put the questions of a turn of the event loop one after another.

        It is not they that become faster, but everything around them: a processor that does the same for one request
        after another finds in its caches what it needs for it.
        """
        waiting, self._asked = self._asked, []
        for question, asked in waiting:
            if not asked.done():  # Else whoever asked has gone.
                try:
                    asked.set_result(self._read(question))
                except Exception as exc:
                    asked.set_exception(exc)

    def _read(self, question: Steps[T]) -> T:
        assert self._reader is not None, "the store is open"
        try:
            if isinstance(question, Question) and question.newest:
                steps: Steps[T] = iter(question)
                return _run(self._reader, steps)
            self._reader.execute("begin")  # A snapshot.
            try:
                return _run(self._reader, question)
            finally:
                self._reader.execute("rollback")
        except sqlite3.OperationalError as exc:
            raise Unavailable("The database does not answer now; try again.") from exc

    async def write(self, change: Steps[T]) -> T:
        assert self._writer is not None, "the store is open"
        done: Future[T] = Future()
        self._changes.put((change, done))
        return await asyncio.wrap_future(done)

    async def time(self) -> datetime | None:
        return None

    def _write_groups(self, ready: Future[None]) -> None:
        try:
            connection = _connection(self._path)
        except sqlite3.Error as exc:
            ready.set_exception(exc)
            return
        turns = Turns(self._path, _BUSY_SECONDS)
        ready.set_result(None)
        while (first := self._changes.get()) is not None:
            group = [first]
            stop = False
            while len(group) < _GROUP and not self._changes.empty():
                following = self._changes.get()
                if following is None:
                    stop = True
                    break
                group.append(following)
            with turns.mine():
                _commit_group(connection, group)
            if stop:
                break
        turns.close()
        connection.close()


def _connection(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS)
    _use_wal(connection)
    connection.execute("pragma synchronous = full")
    connection.execute("pragma foreign_keys = on")
    # Whatever the library's default is: what is removed is overwritten, see `scrubbing`.
    connection.execute("pragma secure_delete = on")
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """The file remembers it, so this matters once; but then SQLite does not wait for others that open the file too."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("pragma journal_mode = wal")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


@cache
def _dialect(statement: str) -> str:
    """The statement as SQLite numbers its parameters, without the row lock it has no need of: its writer is alone."""
    return statement.replace("$", "?").replace(" for update skip locked", "").replace(" for update", "")


def _run(connection: sqlite3.Connection, steps: Steps[T]) -> T:
    rows: list[tuple[Any, ...]] | None = None
    try:
        while True:
            statement, parameters = next(steps) if rows is None else steps.send(rows)
            rows = connection.execute(_dialect(statement), parameters).fetchall()
    except StopIteration as stop:
        answer: T = stop.value
        return answer


def run(connection: sqlite3.Connection, steps: Steps[T]) -> T:
    """Drive a question on a connection, for a file that no store has open."""
    return _run(connection, steps)


def _commit_group(connection: sqlite3.Connection, group: list[tuple[Steps[Any], Future[Any]]]) -> None:
    """Run the changes of a group and commit. Each future gets its result after the commit, or its own error."""
    outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
    try:
        connection.execute("begin immediate")
        for change, done in group:
            if not done.set_running_or_notify_cancel():
                continue  # The caller has gone before anything was done for it.
            connection.execute("savepoint change")
            try:
                result = _run(connection, change)
            except Exception as exc:
                if not connection.in_transaction:
                    raise  # On a full disk SQLite takes back the whole transaction by itself, and with it the group.
                connection.execute("rollback to change")
                outcomes.append((done, None, _told(exc)))
            else:
                outcomes.append((done, result, None))
            connection.execute("release change")
        connection.execute("commit")
    except sqlite3.Error as exc:  # Busy for too long, disk full, file gone: nothing of the group is in the database.
        # When even that fails, the next group's begin fails too, and rolls back again.
        with contextlib.suppress(sqlite3.Error):
            connection.rollback()
        failure = Unavailable("The database cannot write now; nothing was changed, try again.")
        failure.__cause__ = exc
        for _, done in group:
            if not done.done():
                if not done.running():
                    done.set_running_or_notify_cancel()
                if not done.cancelled():
                    done.set_exception(failure)
        return
    for done, result, error in outcomes:
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)


def _told(exc: Exception) -> Exception:
    """Deliberate errors as they are; an engine's as Unavailable, unless it shows a mistake of ours."""
    if isinstance(exc, CCPError) or not isinstance(exc, sqlite3.OperationalError):
        return exc
    told = Unavailable("The database cannot write now; nothing was changed, try again.")
    told.__cause__ = exc
    return told
