"""Checks of the files that the settings name: present, readable, and private where they hold secrets."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, SecretStr

from ccp.server.diagnosis.context import Context
from ccp.server.diagnosis.finding import CheckResult
from ccp.server.settings.examination import Examination, Source
from ccp.server.settings.services import SERVICES
from ccp.server.storage.engine.schema import is_postgres, sqlite_file

_PUBLIC: Final = frozenset({"rate_limit_file", "jwks_file"})
"""Settings with the ending of secret files that hold no secret."""
_CREATED: Final = frozenset({"rate_limit_file", "audit_stream_file"})
"""Files that the pool creates itself."""
_DATABASE_FILES: Final = {"sslkey": True, "sslcert": False, "sslrootcert": False, "sslcrl": False, "passfile": True}
"""Parameters of a PostgreSQL URL that name files, and whether these are private."""
_SYSTEM_CAS: Final = "system"
_POD: Final = "KUBERNETES_SERVICE_HOST"
"""Set in every container of a pod, which no other user of the machine can look into."""


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that a setting names. private: whether it holds a key, a secret or the database."""

    setting: str
    path: Path
    private: bool
    required: bool = True


async def check_files(context: Context, result: CheckResult) -> None:
    """Modes and owners of files. All of them are looked at in one thread."""
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    result.note(f"examined as user {_user_name(user)}")
    files = list(named_files(context.examination))
    await context.blocking(_examine, files, user, result)
    result.note(f"{len(files)} file(s)")


def named_files(examination: Examination) -> Iterator[NamedFile]:
    """The configuration file, files of settings and of issuers, and those of the database."""
    settings = examination.settings
    if examination.file is not None:
        yield NamedFile("configuration", examination.file, private=_has_secret(examination))
    yield from _of_model(settings, "")
    if not is_postgres(settings.database):
        if settings.database.startswith("sqlite:///"):
            database = sqlite_file(settings.database)
            yield NamedFile("database", database, private=True, required=False)
            for ending in ("-wal", "-shm"):
                yield NamedFile("database", database.with_name(database.name + ending), private=True, required=False)
        return
    for name, values in parse_qs(urlsplit(settings.database).query).items():
        if name in _DATABASE_FILES and values[-1] != _SYSTEM_CAS:
            yield NamedFile(f"database ({name})", Path(values[-1]), private=_DATABASE_FILES[name])


def _of_model(model: BaseModel, prefix: str) -> Iterator[NamedFile]:
    for name in type(model).model_fields:
        value: Any = getattr(model, name)
        flat = f"{prefix}{name}"
        if isinstance(value, Path):
            private = name.endswith(("_key", "_file")) and name not in _PUBLIC
            yield NamedFile(flat, value, private, required=name not in _CREATED)
        elif isinstance(value, BaseModel):
            yield from _of_model(value, f"{flat}_")
        elif isinstance(value, tuple):
            for number, each in enumerate(value):
                if isinstance(each, BaseModel):
                    yield from _of_model(each, f"{flat}[{number}].")


def _has_secret(examination: Examination) -> bool:
    """Whether the configuration file has a secret in it. A password in a URL is one too."""
    for name, source in examination.named.items():
        if source is Source.FILE:
            prefix, _, member = name.partition("_")
            holder = getattr(examination.settings, prefix) if prefix in SERVICES else examination.settings
            value: Any = getattr(holder, name, None) or getattr(holder, member, None)
            if isinstance(value, SecretStr) or (name == "database" and _has_password(value)):
                return True
    return False


def _has_password(url: str) -> bool:
    parts = urlsplit(url)
    return is_postgres(url) and (":" in parts.netloc.rpartition("@")[0] or "password" in parse_qs(parts.query))


def _examine(files: list[NamedFile], user: int, result: CheckResult) -> None:
    folders: set[Path] = set()
    for file in files:
        place = f"{file.setting}: {file.path}"
        try:
            found = file.path.stat()
        except FileNotFoundError:
            if file.required:
                result.add("file.missing", f"{place} does not exist.", subject=file.setting)
            continue
        except OSError as exc:
            result.add("file.unreadable", f"{place} cannot be examined: {exc.strerror}.", subject=file.setting)
            continue
        if not os.access(file.path, os.R_OK):
            result.add("file.unreadable", f"{place} cannot be read by this user.", subject=file.setting)
        mode = stat.S_IMODE(found.st_mode)
        if file.private and mode & stat.S_IROTH and _POD in os.environ and not mode & stat.S_IWOTH:
            result.note(f"{place} has the mode {mode:04o}, as Secret volumes of Kubernetes have")
        elif file.private and mode & stat.S_IROTH:
            message = f"{place} has the mode {mode:04o}: every user of this machine can read it."
            result.add("file.readable-by-others", message, subject=file.setting)
        if mode & stat.S_IWOTH and stat.S_ISREG(found.st_mode):
            message = f"{place} has the mode {mode:04o}: every user of this machine can change it."
            result.add("file.writable-by-others", message, subject=file.setting)
        if file.private and found.st_uid not in (0, user):
            message = f"{place} belongs to {_user_name(found.st_uid)}."
            result.add("file.wrong-owner", message, subject=file.setting)
        folders.add(file.path.absolute().parent)
    for folder in sorted(folders):
        _examine_folder(folder, result)


def _examine_folder(folder: Path, result: CheckResult) -> None:
    """A folder that others can write to lets them replace its files, unless its sticky bit is set as for /tmp."""
    try:
        mode = stat.S_IMODE(folder.stat().st_mode)
    except OSError:
        return
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        message = f"The folder {folder} has the mode {mode:04o}: every user of this machine can replace its files."
        result.add("file.writable-by-others", message, subject=str(folder))


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
