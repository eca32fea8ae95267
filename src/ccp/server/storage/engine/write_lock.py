"""Fair write lock between processes that use one SQLite file.

SQLite lets one process write at a time and makes the others retry. A process that has just finished retries sooner than
one that sleeps until its next try, so of two busy processes one may wait for seconds. This lock is a queue: a writer
takes the head of the queue, waits there until the current writer has finished, and then gives the head to the next one.
The file's own lock still decides. Without this lock, or when it takes too long, a process writes as it would without.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

try:
    import fcntl
except ImportError:  # A system without fcntl has no uvloop and does not run several workers.
    fcntl = None  # type: ignore[assignment]

_HEAD: Final = 0
_WRITER: Final = 1
_RETRY_DELAY: Final = 0.0005


class WriteLock:
    """The queue of writers before a database: POSIX locks on two bytes of a file beside it, `<database>-writelock`."""

    def __init__(self, database: Path, timeout: float) -> None:
        """timeout: seconds to wait for the lock."""
        self._file: int | None = None
        self._timeout = timeout
        with contextlib.suppress(OSError):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(f"{database}-writelock", flags, 0o600)

    def close(self) -> None:
        """Close the lock file."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock. After the timeout the body runs without it."""
        deadline = time.monotonic() + self._timeout
        head = writer = False
        try:
            head = self._acquire(_HEAD, deadline)
            writer = head and self._acquire(_WRITER, deadline)
            if head:
                self._release(_HEAD)
                head = False
            yield
        finally:
            for offset, held in ((_WRITER, writer), (_HEAD, head)):
                if held:
                    self._release(offset)

    def _acquire(self, offset: int, deadline: float) -> bool:
        while fcntl is not None and self._file is not None:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    break
                time.sleep(_RETRY_DELAY)
            except OSError:
                break  # The file system has no locks.
            else:
                return True
        return False

    def _release(self, offset: int) -> None:
        if fcntl is not None and self._file is not None:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, offset)
