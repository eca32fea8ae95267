"""Writer thread of a SQLite file, with group commit: all waiting writes are committed as one transaction.

Each write runs in its own savepoint. With synchronous = FULL a commit is on disk before it is acknowledged, and the
group shares that cost. An error of one write affects that write alone. Any other error ends the group, and none of its
writes is acknowledged. An error that does not come from the database (a defect, no memory, a lock that fails) ends the
thread too, and `ccp.server.runtime.threads` starts it again.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ccp.errors import CCPError, DatabaseUnavailable
from ccp.server.runtime.threads import Inbox, Job, Outcome
from ccp.server.storage.engine.secret_codec import SecretCodec
from ccp.server.storage.engine.sqlite_connection import connected, is_outage, run
from ccp.server.storage.engine.time_limits import NOT_CONFIRMED, NOT_WRITTEN
from ccp.server.storage.engine.write_lock import WriteLock

_GROUP: Final = 64  # Writes in one commit. A larger group gains little and delays the first write.


def serve(path: Path, busy_timeout: float, codec: SecretCodec) -> Callable[[Inbox], None]:
    """The thread's function. busy_timeout: seconds to wait for the write lock, and again for the file's own lock."""

    def loop(inbox: Inbox) -> None:
        connection = connected(path, busy_timeout)
        write_lock = WriteLock(path, busy_timeout)
        try:
            if inbox.restarted:
                _try_lock(connection, write_lock)
            inbox.ready()
            while group := inbox.take(_GROUP):
                with write_lock.hold():
                    _commit_group(connection, group, inbox, codec)
        finally:
            write_lock.close()
            connection.close()

    return loop


def _try_lock(connection: sqlite3.Connection, write_lock: WriteLock) -> None:
    """Take all locks of a transaction, so that a thread that would fail at once does not report that it is ready."""
    with write_lock.hold():
        connection.execute("begin immediate")
        connection.execute("rollback")


def _commit_group(connection: sqlite3.Connection, group: Sequence[Job], inbox: Inbox, codec: SecretCodec) -> None:
    """Run the writes of a group and commit. Each caller gets its result after the commit, or its own error."""
    outcomes: list[Outcome] = []
    committing = False
    try:
        connection.execute("begin immediate")
        # A job that cannot be claimed lost its caller before it began.
        outcomes.extend(_change(connection, job, codec) for job in group if job.claim())
        committing = True
        connection.execute("commit")
    except BaseException as exc:
        # If the rollback fails, the next group's begin fails too and rolls back again.
        with contextlib.suppress(sqlite3.Error):
            connection.rollback()
        inbox.finish(_failed(group, exc, committing=committing))
        if not isinstance(exc, sqlite3.OperationalError):  # Busy for too long, disk full, file gone.
            raise
    else:
        inbox.finish(outcomes)


def _change(connection: sqlite3.Connection, job: Job, codec: SecretCodec) -> Outcome:
    """Run one write. Raises the errors that end the whole group."""
    connection.execute("savepoint change")
    try:
        outcome: Outcome = job, run(connection, job.work, codec), None
    except MemoryError:
        raise
    except Exception as exc:
        if not connection.in_transaction:
            raise  # On a full disk SQLite itself rolls back the whole transaction, and so the group.
        connection.execute("rollback to change")
        outcome = job, None, _error_of(exc)
    connection.execute("release change")
    return outcome


def _failed(group: Sequence[Job], exc: BaseException, *, committing: bool) -> list[Outcome]:
    """Outcomes of a group that failed: nothing of it is in the database, as far as is known."""
    # After an I/O error during a commit it is unknown whether the last block reached the disk.
    unknown = committing and (not isinstance(exc, sqlite3.Error) or _code(exc) == sqlite3.SQLITE_IOERR)
    failure = DatabaseUnavailable(NOT_CONFIRMED if unknown else NOT_WRITTEN)
    failure.__cause__ = exc
    for job in group:
        job.claim()
    return [(job, None, failure) for job in group]


def _code(exc: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for an error of the sqlite3 module itself."""
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF


def _error_of(exc: Exception) -> Exception:
    """Translate an outage to Unavailable; return domain errors and defects unchanged."""
    if isinstance(exc, CCPError) or not is_outage(exc):
        return exc
    unavailable = DatabaseUnavailable(NOT_WRITTEN)
    unavailable.__cause__ = exc
    return unavailable
