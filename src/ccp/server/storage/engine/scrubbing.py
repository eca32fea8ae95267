"""Physical removal after an erasure: no file of a SQLite database holds the id any more, even while servers use it.

A committed DELETE leaves bytes in three places:

1. free space of database pages. Every connection sets `secure_delete`, which overwrites deleted content;
2. older page images in the write-ahead log. `wal_checkpoint(TRUNCATE)` moves the log into the database and empties it;
3. copies of rows that moved to another page when a B-tree was balanced. SQLite never overwrites these. They are rare
   (measured: 3 of 4,000 erased contracts); a scan of the file finds them, and VACUUM removes them.

Source: https://www.sqlite.org/pragma.html (secure_delete, wal_checkpoint), https://www.sqlite.org/lang_vacuum.html.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ccp.errors import Unavailable
from ccp.ids import EMAID, PCID
from ccp.server.storage.engine.write_lock import WriteLock

_BUSY_TIMEOUT: Final = 1.0
"""Seconds that an attempt may block writers while it waits for readers, such as a backup."""
_VACUUM_TIMEOUT: Final = 30.0
_RETRY_DELAY: Final = 0.25
_CHUNK: Final = 1 << 20
_SHORTEST: Final = 12  # Bytes of a text that is not found by chance.


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """Result of a scrub.

    log_emptied: the write-ahead log is empty. found: the database file still contains the id. vacuumed: the file was
    rebuilt; then `found` is true only because of rows that are kept.
    """

    log_emptied: bool
    found: bool
    vacuumed: bool = False


def scrub(file: Path, named: EMAID | PCID, *, vacuum: bool, timeout: float = 10.0) -> Scrubbed:
    """Remove the remains of erased rows from a database's files. timeout: seconds to wait for readers of the log.

    vacuum: rebuild the file if it still contains the id; writers wait meanwhile. Raises Unavailable.
    """
    return _scrub(file, lambda: _holds(file, _forms(named), fold=True), vacuum, timeout)


def scrub_texts(file: Path, texts: Collection[str] | None, *, vacuum: bool, timeout: float = 10.0) -> Scrubbed:
    """As `scrub`, for values of a column. texts: the values; None for unknown ones, which the file then may contain."""
    parts = None if texts is None else tuple(_part(text) for text in texts)
    if parts is not None and any(len(part) < _SHORTEST for part in parts):
        parts = None  # Such a text is found by chance.
    rebuilt = False

    def found() -> bool:
        nonlocal rebuilt
        if parts is None:
            rebuilt, asked = True, not rebuilt
            return asked
        return _holds(file, parts, fold=False)

    return _scrub(file, found, vacuum, timeout)


def _part(text: str) -> bytes:
    """The middle of a text, which distinguishes keys with the same beginning, and fits into one page."""
    content = text.encode()
    return content[max(0, len(content) // 2 - 32) :][:64]


def _scrub(file: Path, holds: Callable[[], bool], vacuum: bool, timeout: float) -> Scrubbed:
    try:
        with closing(sqlite3.connect(file, isolation_level=None, timeout=_BUSY_TIMEOUT)) as connection:
            connection.execute("pragma secure_delete = on")
            emptied = _empty_log(connection, timeout)
            if not emptied or not (found := holds()) or not vacuum:
                return Scrubbed(emptied, emptied and found)
            write_lock = WriteLock(file, _VACUUM_TIMEOUT)
            try:
                with write_lock.hold():  # Other processes queue instead of retrying until they fail.
                    connection.execute(f"pragma busy_timeout = {int(_VACUUM_TIMEOUT * 1000)}")
                    connection.execute("vacuum")
                    connection.execute(f"pragma busy_timeout = {int(_BUSY_TIMEOUT * 1000)}")
            finally:
                write_lock.close()
            emptied = _empty_log(connection, timeout)
            return Scrubbed(emptied, emptied and holds(), vacuumed=True)
    except (sqlite3.Error, OSError) as exc:
        raise Unavailable(f"The rows are changed, but the database's files could not be cleared: {exc}.") from exc


def _empty_log(connection: sqlite3.Connection, timeout: float) -> bool:
    until = time.monotonic() + timeout
    while True:
        try:
            busy, *_ = connection.execute("pragma wal_checkpoint(truncate)").fetchone()
        except sqlite3.OperationalError:  # Another checkpoint is running.
            busy = 1
        if not busy:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(_RETRY_DELAY)


def _holds(file: Path, forms: Collection[bytes], *, fold: bool) -> bool:
    """Whether a file contains one of the texts. fold: in any letter case; the texts are in capitals.

    SQLite stores columns without a separator, so a longer id with this prefix matches too.
    """
    if not forms:
        return False
    longest = max(map(len, forms))
    with file.open("rb") as stream:
        tail = b""
        while chunk := stream.read(_CHUNK):
            part = tail + (chunk.upper() if fold else chunk)
            if any(form in part for form in forms):
                return True
            tail = part[-longest:]
    return False


def _forms(named: EMAID | PCID) -> tuple[bytes, ...]:
    """The id with and without hyphens."""
    if isinstance(named, PCID):
        return (named.encode(),)
    country, provider, rest = named[:2], named[2:5], named[5:]
    written = (f"{country}{a}{provider}{b}{rest}" for a in ("", "-") for b in ("", "-"))
    return tuple(form.encode() for form in written)
