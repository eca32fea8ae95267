"""Copies of a SQLite database: taken while it is in use, checked, put back.

For PostgreSQL this is the work of its own tools, see docs/operations.md.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from ccp.errors import ConfigurationError
from ccp.server.storage import restore as restoring
from ccp.server.storage.engine import schema
from ccp.server.storage.engine.inspection import inspect, misfit
from ccp.server.storage.engine.query import T
from ccp.server.storage.queries.audit import AuditRow, Entry
from ccp.server.storage.queries.signing_keys import TokenKey
from ccp.server.storage.restore import Undone

_BUSY_SECONDS: Final = 10.0
_BESIDE: Final = ("-wal", "-shm", "-journal")
_LOCKS: Final = (0x4000_0002, 510)
"""Octets of a database file on which every open connection in WAL mode holds a shared lock.

Source: https://www.sqlite.org/fileformat2.html, "The Lock-Byte Page".
"""


@dataclass(frozen=True, slots=True)
class Checked:
    """A database whose every page was read and found good. octets: of the file."""

    revision: str
    contracts: int
    octets: int


def backup(url: str, target: Path) -> Checked:
    """Copy the database as it is at one moment to a file, while servers go on writing.

    The file is there when it is complete, checked and on disk, for its owner alone; one that was there before is
    replaced then. Raises ConfigurationError.
    """
    source = _sqlite_file(url)
    if schema.revision(url) is None:
        raise ConfigurationError(f"There is no database of ours at {source}.")
    if target.exists() and target.resolve() == source.resolve():
        raise ConfigurationError("A backup cannot take the place of the database.")
    part = target.with_name(target.name + ".part")
    with _told(target), _removed(part):
        _create(part)
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)) as live,
            closing(sqlite3.connect(part, isolation_level=None)) as copy,
        ):
            # Held until the end: so the copy is of this moment, and is not begun anew whenever somebody writes.
            live.execute("begin")
            live.execute("select count(*) from alembic_version").fetchone()
            live.backup(copy)
            live.execute("rollback")
            copy.execute("pragma journal_mode = delete")  # One file, with nothing beside it.
        checked = check(part)
        _sync(part)
        part.replace(target)
        _sync(target.parent)
    return checked


def check(file: Path) -> Checked:
    """Read every page of a database that nobody uses. Raises ConfigurationError where it is damaged or not ours."""
    url = f"sqlite:///{file}"
    found = schema.revision(url)
    if found is None:
        raise ConfigurationError(f"{file} is not a database of ours.")
    if found > schema.head():
        raise ConfigurationError(f"The schema of {file} is {found}, newer than this release's {schema.head()}.")
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            problems = [row[0] for row in connection.execute("pragma integrity_check(3)")]
            if problems != ["ok"]:
                raise ConfigurationError(f"{file} is damaged: {'; '.join(problems)}.")
            if (column := misfit(connection)) is not None:
                raise ConfigurationError(f"{file} is damaged: {column} has a value of another type.")
            contracts = connection.execute("select count(*) from contract").fetchone()[0]
    except sqlite3.DatabaseError as exc:
        raise ConfigurationError(f"{file} is damaged: {exc}.") from exc
    return Checked(found, contracts, file.stat().st_size)


@dataclass(frozen=True, slots=True)
class Restored:
    """aside: where the database that was there lies now. keys: kids of those that are gone; None where they were kept.

    undone: what was done after the backup, as far as the replaced database and the export tell; None where neither
    does. problem: why the replaced database tells nothing.
    """

    checked: Checked
    aside: Path | None
    keys: list[str] | None
    undone: Undone | None
    problem: str | None = None


def restore(
    url: str,
    source: Path,
    at: datetime,
    *,
    entry: Callable[[Sequence[str]], Entry],
    key: TokenKey | None = None,
    replace: bool = False,
    export: Iterable[AuditRow] | None = None,
) -> Restored:
    """Make a backup the database. Its keys are replaced and its trail gets a row before anything uses it.

    key: takes the place of every key that signs tokens; None keeps them. entry: see `restoring.prepare`. replace: a
    database that is there may be put aside; it is kept under its name with the time behind it. export: rows of a later
    state of the audit trail. Raises ConfigurationError where a process has that database open, where the backup is
    damaged, of a newer release, or has anything in its schema that ours has not.
    """
    target = _sqlite_file(url)
    _check_complete(source)
    inspect(source)
    if target.exists() and target.resolve() == source.resolve():
        raise ConfigurationError("The backup is the database.")
    if target.exists() and not replace:
        raise ConfigurationError(f"There is a database at {target}; --replace puts it aside.")
    part = target.with_name(target.name + ".part")
    with _told(target), _removed(part):
        _create(part)
        with source.open("rb") as given, part.open("r+b") as file:
            while octets := given.read(1 << 20):
                file.write(octets)
            file.flush()
            os.fsync(file.fileno())
        # The copy is inspected, not the backup: no other process can change it.
        revision = _told_of(source, part, inspect)
        checked = _told_of(source, part, check)
        gone, ends = restoring.prepare(part, revision, key, entry)
        _sync(part)
        undone = Undone() if export is not None else None
        if undone is not None:
            undone.take(export or (), ends)
        problem = None
        aside = target.with_name(f"{target.name}.{at:%Y%m%dT%H%M%SZ}")
        if aside.exists():
            raise ConfigurationError(f"There is a file {aside} already.")
        with _alone_with(target) if target.exists() else nullcontext() as old:
            if old is not None:
                known = undone or Undone()
                try:
                    known.take(restoring.trail(old, ends), ends)
                    undone = known
                except sqlite3.Error as exc:
                    problem = f"the database that was there cannot be read ({exc})"
            elif target.exists():
                problem = "the database that was there cannot be read"
            # What a crash left in a log beside the database belongs to the one that is put aside, and would be written
            # into the new one. So it goes first.
            for ending in _BESIDE:
                with suppress(FileNotFoundError):
                    target.with_name(target.name + ending).rename(aside.with_name(aside.name + ending))
            if target.exists():
                os.link(target, aside)
            # From one database to the other in one step; a crash leaves one of the two.
            part.replace(target)
            _sync(target.parent)
    return Restored(checked, aside if aside.exists() else None, gone if key is not None else None, undone, problem)


def _check_complete(source: Path) -> None:
    """Refuse a copy of a database that was in use: its last changes lie beside it. Raises ConfigurationError."""
    if not source.is_file():
        raise ConfigurationError(f"{source} is not a database of ours.")
    for ending in ("-wal", "-journal"):
        beside = source.with_name(source.name + ending)
        if beside.exists() and beside.stat().st_size:
            raise ConfigurationError(
                f"Beside {source} lies {beside.name} with changes that belong to it: it is a copy of a database in "
                "use, and `ccp backup` did not write it. Make it the database of a configuration and back that up."
            )


def _told_of(source: Path, part: Path, look: Callable[[Path], T]) -> T:
    """Inspect the copy; errors name the backup."""
    try:
        return look(part)
    except ConfigurationError as exc:
        raise ConfigurationError(*(message.replace(str(part), str(source)) for message in exc.messages)) from exc


@contextmanager
def _alone_with(file: Path) -> Iterator[sqlite3.Connection | None]:
    """Lock the database against every other process. Raises ConfigurationError if a process has it open.

    Gives a connection to read it with, None where it is too damaged for that.
    """
    try:
        with closing(sqlite3.connect(file, isolation_level=None, timeout=1)) as connection:
            # Only who is alone may leave WAL; its log is written into the database by that, and gone.
            connection.execute("pragma journal_mode = delete")
            connection.execute("begin exclusive")
            yield connection
            return
    except sqlite3.DatabaseError as exc:
        if exc.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise ConfigurationError(f"A process has the database {file} open; stop the pool first.") from exc
    # Too damaged for SQLite, which is what backups are for. Somebody may have it open all the same.
    with file.open("r+b") as locked:
        try:
            fcntl.lockf(locked, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCKS[1], _LOCKS[0])
        except OSError as exc:
            raise ConfigurationError(f"A process has the database {file} open; stop the pool first.") from exc
        yield None


def _sqlite_file(url: str) -> Path:
    if not url.startswith("sqlite:///"):
        raise ConfigurationError(
            "This is for SQLite; PostgreSQL has pg_dump and its archive of write-ahead logs, see docs/operations.md."
        )
    return schema.sqlite_file(url)


def _create(file: Path) -> None:
    """For the owner alone: the keys that sign tokens are in it."""
    file.unlink(missing_ok=True)
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _removed(part: Path) -> Iterator[None]:
    """Whatever happens, nothing unfinished stays."""
    try:
        yield
    finally:
        for ending in ("", *_BESIDE):
            with suppress(OSError):
                part.with_name(part.name + ending).unlink(missing_ok=True)


@contextmanager
def _told(target: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise ConfigurationError(f"The copy to {target} failed: {exc}.") from exc
    except OSError as exc:
        raise ConfigurationError(f"The copy to {target} failed: {exc.strerror or exc}.") from exc
