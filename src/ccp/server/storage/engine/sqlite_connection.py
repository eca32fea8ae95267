"""Connections to a SQLite file, and questions that run on them."""

from __future__ import annotations

import sqlite3
import time
from functools import cache
from pathlib import Path
from typing import Any, Final

from ccp.server.storage.engine.query import Query, T

_OPEN_TIMEOUT: Final = 5.0  # Others that open the file at the same time keep it busy for moments.


def connected(path: Path, busy_timeout: float) -> sqlite3.Connection:
    """busy_timeout: seconds that a statement waits for locks of others. Raises sqlite3.Error."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_OPEN_TIMEOUT)
    try:
        _use_wal(connection)
        connection.execute("pragma synchronous = full")
        connection.execute("pragma foreign_keys = on")
        # Whatever the library's default is: what is removed is overwritten, see `scrubbing`.
        connection.execute("pragma secure_delete = on")
        connection.execute(f"pragma busy_timeout = {int(busy_timeout * 1000)}")
    except BaseException:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """The file remembers it, so this matters once; but then SQLite does not wait for others that open the file too."""
    deadline = time.monotonic() + _OPEN_TIMEOUT
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


def run(connection: sqlite3.Connection, steps: Query[T]) -> T:
    """Drive a question or a change on a connection, within a transaction of the caller's or none."""
    rows: list[tuple[Any, ...]] | None = None
    try:
        while True:
            statement, parameters = next(steps) if rows is None else steps.send(rows)
            rows = connection.execute(_dialect(statement), parameters).fetchall()
    except StopIteration as stop:
        answer: T = stop.value
        return answer


def is_outage(exc: Exception) -> bool:
    """Whether an error comes from the file or the machine, not from a mistake of ours in a statement."""
    return isinstance(exc, sqlite3.OperationalError) or type(exc) is sqlite3.DatabaseError


def is_busy(exc: BaseException | None) -> bool:
    """Whether others held a lock for too long; the same again may succeed."""
    code: int = getattr(exc, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
