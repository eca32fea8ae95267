"""Files that a worker reads at its start, kept in the memory of its parent.

The parent of several workers checks these files and keeps what it read. A worker that starts later reads the kept
contents, so that a file that is being replaced, or was damaged, does not keep the worker from starting. Private keys
are among the contents, and are not written to disk.

Whatever reads such a file calls `read`, `state_of` or `file_for_openssl`. Without a parent, and in a worker that has
started, these functions read the file itself.

Source: docs/decisions/0039-start-files-in-memory.md.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

MAX_BYTES: Final = 4 << 20
"""Size of the largest file; the CAs of a system have some 220 KiB."""

NOT_REGULAR: Final = "not a regular file"


class FileState(NamedTuple):
    """What changes when a file is written or replaced. modified: nanoseconds."""

    inode: int
    size: int
    modified: int


class StartFile(NamedTuple):
    """A file as it was read. state: from before it was read; None if it could not be examined."""

    state: FileState | None
    content: bytes


@dataclass(slots=True)
class _Source:
    """Contents by path that replace the files. recording: whether what is read from files is added."""

    files: dict[Path, StartFile]
    recording: bool


_SOURCE: Final[ContextVar[_Source | None]] = ContextVar("start_files", default=None)


@contextmanager
def recording() -> Iterator[Mapping[Path, StartFile]]:
    """Keep every file that is read within the block, and read each of them once. Yields the files by path.

    A file that cannot be read is there too, without content.
    """
    source = _Source({}, recording=True)
    token = _SOURCE.set(source)
    try:
        yield source.files
    finally:
        _SOURCE.reset(token)


def use(files: Mapping[Path, StartFile]) -> None:
    """Read these files from memory in this process until `release` is called."""
    _SOURCE.set(_Source(dict(files), recording=False))


def release() -> None:
    """Read all files from disk from now on, in every task of this process."""
    if (source := _SOURCE.get()) is not None:
        source.files.clear()


def read(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file. Raises OSError, also for a file with more bytes than `max_bytes`."""
    source = _SOURCE.get()
    if source is not None and (kept := source.files.get(path)) is not None and kept.content:
        return kept.content
    state = state_of(path)
    if source is not None and source.recording:
        source.files[path] = StartFile(state, b"")
    content = _read(path, max_bytes)
    if source is not None and source.recording:
        source.files[path] = StartFile(state, content)
    return content


def state_of(path: Path) -> FileState | None:
    """Return the state of a file; None for one that cannot be examined. Symbolic links are followed."""
    source = _SOURCE.get()
    if source is not None and (kept := source.files.get(path)) is not None and kept.content:
        return kept.state
    return state_on_disk(path)


def state_on_disk(path: Path) -> FileState | None:
    """Return the state of the file itself, also while its content is kept."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name.
        return None
    return FileState(status.st_ino, status.st_size, status.st_mtime_ns)


@contextmanager
def file_for_openssl(path: Path) -> Iterator[str]:
    """Yield the name of a file with the content of `path`, for OpenSSL, which reads names only. Raises OSError.

    A kept content is in a file in memory, which ends with the block. Only Linux has such files; elsewhere the file
    itself is read.
    """
    if _SOURCE.get() is None or not hasattr(os, "memfd_create"):
        yield str(path)
        return
    content = read(path)
    descriptor = os.memfd_create("start-file", os.MFD_CLOEXEC)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{descriptor}"


def _read(path: Path, max_bytes: int) -> bytes:
    # Without O_NONBLOCK a named pipe would block until a program writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, NOT_REGULAR)
    with open(descriptor, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes:,} bytes")
    return content
