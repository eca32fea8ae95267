"""Backup and restore of a SQLite database. A backup is taken online, and checked.

PostgreSQL has its own tools, see docs/database.md.
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
from ccp.server.runtime.documents import document
from ccp.server.runtime.private_files import fsync_path
from ccp.server.storage import restore as restoring
from ccp.server.storage.engine import schema
from ccp.server.storage.engine.inspection import inspect, misfit
from ccp.server.storage.engine.query import T
from ccp.server.storage.engine.secret_codec import SecretCodec
from ccp.server.storage.queries.audit import AuditRow, Entry
from ccp.server.storage.queries.signing_keys import TokenKey
from ccp.server.storage.restore import Undone

_BUSY_TIMEOUT: Final = 10.0
_SUFFIXES: Final = ("-wal", "-shm", "-journal")
"""Files that SQLite keeps beside a database."""
_LOCKS: Final = (0x4000_0002, 510)
"""Offset and length of the bytes of a database file on which every connection in WAL mode holds a shared lock.

Source: https://www.sqlite.org/fileformat2.html, "The Lock-Byte Page".
"""


@dataclass(frozen=True, slots=True)
class CheckedDatabase:
    """A database whose every page was read without an error. size: of the file, in bytes."""

    revision: str
    contracts: int
    size: int


def backup(url: str, target: Path) -> CheckedDatabase:
    """Write a consistent copy of the database to a file, while servers keep writing.

    The file appears, or replaces an older one, when it is complete, checked and on disk. Only its owner may read it.
    Raises ConfigurationError.
    """
    source = _sqlite_file(url)
    if schema.revision(url) is None:
        raise ConfigurationError(f"There is no opnc-ccp database at {source}.")
    if target.exists() and target.resolve() == source.resolve():
        raise ConfigurationError("A backup cannot take the place of the database.")
    part = target.with_name(target.name + ".part")
    with _translate_errors(target), _cleanup(part):
        _create(part)
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT)) as live,
            closing(sqlite3.connect(part, isolation_level=None)) as copy,
        ):
            # A read transaction during the whole copy: the copy shows one moment, and no write restarts it.
            live.execute("begin")
            live.execute("select count(*) from alembic_version").fetchone()
            live.backup(copy)
            live.execute("rollback")
            copy.execute("pragma journal_mode = delete")  # One file, without a WAL beside it.
        checked = check(part)
        fsync_path(part)
        part.replace(target)
        fsync_path(target.parent)
    return checked


def check(file: Path) -> CheckedDatabase:
    """Read every page of a database that is not in use. Raises ConfigurationError if it is damaged or not ours."""
    url = f"sqlite:///{file}"
    found = schema.revision(url)
    if found is None:
        raise ConfigurationError(f"{file} is not an opnc-ccp database.")
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
    return CheckedDatabase(found, contracts, file.stat().st_size)


@dataclass(frozen=True, slots=True)
class Restored:
    """Result of a restore.

    aside: the new name of the replaced database. keys: kids of the removed signing keys; None if they were kept.
    undone: what was done after the backup, known from the replaced database and the export; None without either.
    problem: why the replaced database could not be read.
    """

    checked: CheckedDatabase
    aside: Path | None
    keys: list[str] | None
    undone: Undone | None
    problem: str | None = None


def restore(
    url: str,
    source: Path,
    now: datetime,
    *,
    entry: Callable[[Sequence[str]], Entry],
    key: TokenKey | None = None,
    replace: bool = False,
    secrets_key_file: Path | None = None,
    export: Iterable[AuditRow] | None = None,
) -> Restored:
    """Make a backup the database. Its signing keys are replaced and its audit trail gets a row before its first use.

    now: part of the name of the replaced database. key: replaces every token signing key; None keeps them. entry: see
    `restoring.prepare`. replace: allow replacing an existing database, which is renamed with the time.
    secrets_key_file: with the keys of the backup's secrets. export: rows of a later state of the audit trail. Raises
    ConfigurationError if a process has the database open, or if the backup is damaged, of a newer release, its schema
    differs from ours, or its keys are missing.
    """
    target, codec = _sqlite_file(url), SecretCodec(secrets_key_file)
    _check_complete(source)
    inspect(source)
    if target.exists() and target.resolve() == source.resolve():
        raise ConfigurationError("The backup is the database.")
    if target.exists() and not replace:
        raise ConfigurationError(f"There is a database at {target}; --replace renames it.")
    part = target.with_name(target.name + ".part")
    with _translate_errors(target), _cleanup(part):
        _create(part)
        with source.open("rb") as given, part.open("r+b") as file:
            while chunk := given.read(1 << 20):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        # The copy is inspected instead of the backup, because no other process can change it.
        revision = _examine(source, part, inspect)
        checked = _examine(source, part, check)
        removed_keys, heads = restoring.prepare(part, revision, key, entry, codec)
        fsync_path(part)
        undone = Undone() if export is not None else None
        if undone is not None:
            undone.add(export or (), heads)
        problem = None
        aside = target.with_name(f"{target.name}.{now:%Y%m%dT%H%M%SZ}")
        if aside.exists():
            raise ConfigurationError(f"There is a file {aside} already.")
        with _exclusive(target) if target.exists() else nullcontext() as old:
            if old is not None:
                known = undone or Undone()
                try:
                    known.add(restoring.trail(old, heads), heads)
                    undone = known
                except sqlite3.Error as exc:
                    problem = f"the database that was there cannot be read ({exc})"
            elif target.exists():
                problem = "the database that was there cannot be read"
            # A log that a crash left belongs to the replaced database, and SQLite would apply it to the new one. So it
            # is moved first.
            for suffix in _SUFFIXES:
                with suppress(FileNotFoundError):
                    target.with_name(target.name + suffix).rename(aside.with_name(aside.name + suffix))
            if target.exists():
                os.link(target, aside)
            # Atomic: after a crash one of the two databases is in place.
            part.replace(target)
            fsync_path(target.parent)
    return Restored(
        checked, aside if aside.exists() else None, removed_keys if key is not None else None, undone, problem
    )


def _check_complete(source: Path) -> None:
    """Refuse a plain copy of a database in use: its last changes are in a file beside it. Raises ConfigurationError."""
    if not source.is_file():
        raise ConfigurationError(f"{source} is not an opnc-ccp database.")
    for suffix in ("-wal", "-journal"):
        beside = source.with_name(source.name + suffix)
        if beside.exists() and beside.stat().st_size:
            raise ConfigurationError(
                f"{source} is a copy of a database in use, which `ccp backup` did not write: {beside.name} holds "
                "changes that belong to it. Make it the database of a configuration and back that up."
            )


def _examine(source: Path, part: Path, check: Callable[[Path], T]) -> T:
    """Run a check on the copy; its errors name the backup."""
    try:
        return check(part)
    except ConfigurationError as exc:
        raise ConfigurationError(*(message.replace(str(part), str(source)) for message in exc.messages)) from exc


@contextmanager
def _exclusive(file: Path) -> Iterator[sqlite3.Connection | None]:
    """Lock the database against every other process. Raises ConfigurationError if a process has it open.

    Yields a connection for reading, None if the database is too damaged.
    """
    try:
        with closing(sqlite3.connect(file, isolation_level=None, timeout=1)) as connection:
            # Leaving WAL mode needs the only connection. It moves the log into the database and removes it.
            connection.execute("pragma journal_mode = delete")
            connection.execute("begin exclusive")
            yield connection
            return
    except sqlite3.DatabaseError as exc:
        if exc.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise ConfigurationError(f"A process has the database {file} open; stop the pool first.") from exc
    # Too damaged for SQLite, which is what backups are for. Another process may still have it open.
    with file.open("r+b") as locked:
        try:
            fcntl.lockf(locked, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCKS[1], _LOCKS[0])
        except OSError as exc:
            raise ConfigurationError(f"A process has the database {file} open; stop the pool first.") from exc
        yield None


def _sqlite_file(url: str) -> Path:
    if not url.startswith("sqlite:///"):
        raise ConfigurationError(
            "This is for SQLite; PostgreSQL has pg_dump and its archive of write-ahead logs, see "
            f"{document('database.md')}."
        )
    return schema.sqlite_file(url)


def _create(file: Path) -> None:
    """Create an empty file that only its owner may read, because the database contains the token signing keys."""
    file.unlink(missing_ok=True)
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


@contextmanager
def _cleanup(part: Path) -> Iterator[None]:
    """Remove the unfinished file and the files beside it, also after an error."""
    try:
        yield
    finally:
        for suffix in ("", *_SUFFIXES):
            with suppress(OSError):
                part.with_name(part.name + suffix).unlink(missing_ok=True)


@contextmanager
def _translate_errors(target: Path) -> Iterator[None]:
    """Raise ConfigurationError for errors of SQLite and the file system."""
    try:
        yield
    except sqlite3.Error as exc:
        raise ConfigurationError(f"The copy to {target} failed: {exc}.") from exc
    except OSError as exc:
        raise ConfigurationError(f"The copy to {target} failed: {exc.strerror or exc}.") from exc
