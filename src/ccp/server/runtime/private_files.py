"""Files with personal data or secrets: accessible to their owner only, and never written through a link.

A directory that other users can write to (a drop folder, /tmp) may contain a link under any name. `O_EXCL` fails for an
existing name, including a dangling link (POSIX open); `rename` replaces a link itself, not its target.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ccp.errors import ConfigurationError


def create_private(path: Path) -> IO[bytes]:
    """Create a new file with mode 0600 and open it for writing. Raises FileExistsError, OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o600), "wb")


@contextmanager
def replace_private(path: Path) -> Iterator[IO[bytes]]:
    """Write a file, mode 0600, that replaces `path` when the block ends without an error.

    The file is synchronised to disk first. Until then, and after an error, the previous file stays. Raises OSError.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    file = create_private(part)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        fsync_path(path.parent)
    finally:
        part.unlink(missing_ok=True)


def reopen_private(path: Path) -> IO[bytes]:
    """Open a private file of this user for reading and writing. Raises FileNotFoundError, ConfigurationError.

    A link, a file of another user and a file with several names (hard links) are refused, because with these another
    user could choose which file is written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be used: {refusal(path) or exc.strerror}.") from exc
    found = os.fstat(descriptor)
    if (reason := _refusal(found)) is not None:
        os.close(descriptor)
        raise ConfigurationError(f"{path} cannot be used: {reason}.")
    return open(descriptor, "r+b")


def read_private(path: Path) -> bytes:
    """The content of a private file, see `reopen_private`. Raises FileNotFoundError, ConfigurationError."""
    with reopen_private(path) as file:
        return file.read()


def refusal(path: Path) -> str | None:
    """Why an existing file is not a private file of this user; None if it is, or if it does not exist."""
    try:
        return _refusal(path.lstat())
    except FileNotFoundError:
        return None


def _refusal(found: os.stat_result) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        return "it is a symbolic link"
    if not stat.S_ISREG(found.st_mode):
        return "it is not a regular file"
    if found.st_uid != os.geteuid():
        return "it belongs to another user"
    if found.st_nlink != 1:
        return "it has a second name (hard link)"
    return None


def fsync_path(path: Path) -> None:
    """Flush a file or a directory to disk. A new or renamed file is durable once its directory is flushed too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
