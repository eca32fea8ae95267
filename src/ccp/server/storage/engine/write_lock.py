"""Taking turns at writing to one SQLite file.

SQLite lets one process write at a time and tells the others to try again. Whoever has just finished is quicker than
whoever sleeps until the next try, so of two busy processes one may wait for seconds. Here each stands in line: to
write, a process takes the place at the head of the line first, and keeps it until the one that writes has finished.
The file's own lock still decides; without turns, or when they take too long, writing goes on as it would anyway.
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
except ImportError:  # A system without them has no uvloop and no several workers either.
    fcntl = None  # type: ignore[assignment]

_HEAD: Final = 0
_WRITER: Final = 1
_PAUSE: Final = 0.0005


class WriteLock:
    """The line of processes before a database, as locks on two octets of a file beside it."""

    def __init__(self, database: Path, timeout: float) -> None:
        """seconds: the longest that a turn is waited for."""
        self._file: int | None = None
        self._timeout = timeout
        with contextlib.suppress(OSError):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(f"{database}-writelock", flags, 0o600)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Within it this process writes. It is also entered when the turn does not come in time."""
        until = time.monotonic() + self._timeout
        head = writer = False
        try:
            head = self._take(_HEAD, until)
            writer = head and self._take(_WRITER, until)
            if head:
                self._give(_HEAD)
                head = False
            yield
        finally:
            for place, held in ((_WRITER, writer), (_HEAD, head)):
                if held:
                    self._give(place)

    def _take(self, place: int, until: float) -> bool:
        while fcntl is not None and self._file is not None:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except BlockingIOError:
                if time.monotonic() > until:
                    break
                time.sleep(_PAUSE)
            except OSError:
                break  # A file system without locks.
            else:
                return True
        return False

    def _give(self, place: int) -> None:
        if fcntl is not None and self._file is not None:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)
