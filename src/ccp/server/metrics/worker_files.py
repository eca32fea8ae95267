"""The files in which several workers share their metrics, and what becomes of those of a worker that has ended.

Its gauges are removed. Its counters and histograms are added to two files that stand for all ended workers: otherwise
each replaced worker would leave two files, and reading hundreds of them would keep a worker from its requests for
seconds. A lock keeps readers out meanwhile, so that no counter is read twice or not at all.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import mark_process_dead

_log = structlog.get_logger("ccp.workers")

_ENDED: Final = "ended"
"""Stands in the place of the process id."""
_ADDED: Final = ("counter", "histogram")
_MIN_SIZE: Final = 1 << 16


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Read the files of all workers within this block."""
    with _locked(folder, fcntl.LOCK_SH):
        yield


def worker_ended(folder: Path, pid: int) -> None:
    """Remove the files of a worker that has ended, and keep what it has counted. For one process.

    A failure, such as a full disk, leaves them as they are, and is logged.
    """
    try:
        with _locked(folder, fcntl.LOCK_EX):
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
            for kind in _ADDED:
                _add(folder / f"{kind}_{pid}.db", folder / f"{kind}_{_ENDED}.db")
    except OSError as exc:
        _log.warning("worker metrics not merged", pid=pid, reason=exc.strerror or str(exc))


def _add(file: Path, total: Path) -> None:
    if not file.exists():
        return
    counted = MmapedDict.read_all_values_from_file(str(file))  # type: ignore[no-untyped-call]
    with total.open("ab") as made:  # A write to mapped memory that the disk has no room for would end the process.
        os.posix_fallocate(made.fileno(), 0, max(_MIN_SIZE, _used(file) + _used(total)))
    sums = MmapedDict(str(total))  # type: ignore[no-untyped-call]
    try:
        for key, value, *_ in counted:
            before, _ = sums.read_value(key)  # type: ignore[no-untyped-call]
            sums.write_value(key, before + value, 0.0)  # type: ignore[no-untyped-call]
    finally:
        sums.close()  # type: ignore[no-untyped-call]
    file.unlink()


def _used(file: Path) -> int:
    """Bytes in use of a file of the library, which begins with their number."""
    with file.open("rb") as content:
        return int.from_bytes(content.read(4), sys.byteorder)


@contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)
