"""Physical removal after an erasure: no file of a SQLite database holds the id any more, also while servers use it.

A committed DELETE leaves bytes in three places:

1. free space of database pages. Every connection of ours sets `secure_delete`, which overwrites what is removed;
2. older page images in the write-ahead log. `wal_checkpoint(TRUNCATE)` moves the log into the database and empties it;
3. copies of rows that moved to another page when a B-tree was balanced: these SQLite never overwrites by itself. They
   are rare (measured: 3 of 4,000 erased contracts), found by reading the file, and removed by VACUUM.

Source: https://www.sqlite.org/pragma.html (secure_delete, wal_checkpoint), https://www.sqlite.org/lang_vacuum.html.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ccp.errors import Unavailable
from ccp.ids import EMAID, PCID
from ccp.server.storage.engine.write_lock import WriteLock

_BUSY_TIMEOUT: Final = 1.0
"""Seconds that an attempt may hold up writers while it waits for readers, who may be a backup."""
_VACUUM_TIMEOUT: Final = 30.0
_RETRY_DELAY: Final = 0.25
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """log_emptied: whether the write-ahead log was. found: whether the id stands in the database file after that.

    vacuumed: whether the file was rebuilt. found is true afterwards only for rows that are kept.
    """

    log_emptied: bool
    found: bool
    vacuumed: bool = False


def scrub(file: Path, named: EMAID | PCID, *, vacuum: bool, timeout: float = 10.0) -> Scrubbed:
    """Remove what is left of erased rows from a database's files. timeout: seconds to wait for readers of the log.

    vacuum: rebuild the file where the id is still in it. Writers wait meanwhile. Raises Unavailable.
    """
    try:
        with closing(sqlite3.connect(file, isolation_level=None, timeout=_BUSY_TIMEOUT)) as connection:
            connection.execute("pragma secure_delete = on")
            emptied = _empty_log(connection, timeout)
            if not emptied or not (found := _holds(file, named)) or not vacuum:
                return Scrubbed(emptied, emptied and found)
            write_lock = WriteLock(file, _VACUUM_TIMEOUT)
            try:
                with write_lock.hold():  # Other processes wait for their turn instead of trying until they give up.
                    connection.execute(f"pragma busy_timeout = {int(_VACUUM_TIMEOUT * 1000)}")
                    connection.execute("vacuum")
                    connection.execute(f"pragma busy_timeout = {int(_BUSY_TIMEOUT * 1000)}")
            finally:
                write_lock.close()
            emptied = _empty_log(connection, timeout)
            return Scrubbed(emptied, emptied and _holds(file, named), vacuumed=True)
    except (sqlite3.Error, OSError) as exc:
        raise Unavailable(f"The rows are erased, but the database's files could not be cleared: {exc}.") from exc


def _empty_log(connection: sqlite3.Connection, timeout: float) -> bool:
    until = time.monotonic() + timeout
    while True:
        try:
            busy, *_ = connection.execute("pragma wal_checkpoint(truncate)").fetchone()
        except sqlite3.OperationalError:  # Another checkpoint is under way.
            busy = 1
        if not busy:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(_RETRY_DELAY)


def _holds(file: Path, named: EMAID | PCID) -> bool:
    """Whether the id stands anywhere in a file, in either case, with hyphens or without.

    Columns follow each other without a separator, so a longer id that begins the same counts too.
    """
    forms = _forms(named)
    longest = max(map(len, forms))
    with file.open("rb") as stream:
        tail = b""
        while chunk := stream.read(_CHUNK):
            part = tail + chunk.upper()
            if any(form in part for form in forms):
                return True
            tail = part[-longest:]
    return False


def _forms(named: EMAID | PCID) -> tuple[bytes, ...]:
    if isinstance(named, PCID):
        return (named.encode(),)
    country, provider, rest = named[:2], named[2:5], named[5:]
    written = (f"{country}{a}{provider}{b}{rest}" for a in ("", "-") for b in ("", "-"))
    return tuple(each.encode() for each in written)
