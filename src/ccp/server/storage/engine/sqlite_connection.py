"""Connections to a SQLite file, and queries that run on them."""

from __future__ import annotations

import sqlite3
import time
from functools import cache
from pathlib import Path
from typing import Any, Final

from ccp.server.storage.engine.query import Query, T
from ccp.server.storage.engine.secret_codec import SecretCodec
from ccp.server.storage.engine.stored_secrets import CODEC

_OPEN_TIMEOUT: Final = 5.0  # Other processes that open the file at the same time keep it busy briefly.


def connected(path: Path, busy_timeout: float) -> sqlite3.Connection:
    """Open a connection in WAL mode. busy_timeout: seconds that a statement waits for locks. Raises sqlite3.Error."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_OPEN_TIMEOUT)
    try:
        _use_wal(connection)
        connection.execute("pragma synchronous = full")
        connection.execute("pragma foreign_keys = on")
        # Overwrite deleted rows whatever the library's default is, see `scrubbing`.
        connection.execute("pragma secure_delete = on")
        connection.execute(f"pragma busy_timeout = {int(busy_timeout * 1000)}")
    except BaseException:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL mode, which the file remembers. Retries, because SQLite does not wait here for other processes."""
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
    """Translate a statement to SQLite: its placeholders, and no row locks, which a single writer does not need."""
    return statement.replace("$", "?").replace(" for update skip locked", "").replace(" for update", "")


def run(connection: sqlite3.Connection, query: Query[T], codec: SecretCodec | None) -> T:
    """Run a query to its end on a connection, within the caller's transaction or none.

    codec: for secrets, see `stored_secrets.CODEC`.
    """
    rows: list[tuple[Any, ...]] | None = None
    try:
        while True:
            statement, parameters = next(query) if rows is None else query.send(rows)
            if statement is CODEC[0]:
                rows = [(codec,)]
                continue
            rows = connection.execute(_dialect(statement), parameters).fetchall()
    except StopIteration as stop:
        result: T = stop.value
        return result


def is_outage(exc: Exception) -> bool:
    """Whether an error comes from the file or the machine, not from a defect in a statement."""
    return isinstance(exc, sqlite3.OperationalError) or type(exc) is sqlite3.DatabaseError


def is_busy(exc: BaseException | None) -> bool:
    """Whether others held a lock for too long; a retry may succeed."""
    code: int = getattr(exc, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
