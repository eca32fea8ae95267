"""Processes that listen on a port, their memory, and the memory limit of their control group (Linux, cgroup v1 and v2).

`/proc` shows the sockets of processes of the same user, or of all to root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_LISTEN: Final = "0A"
_UNLIMITED: Final = 1 << 60
"""Bytes. cgroup v1 has a number near 2⁶³ for no limit."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """processes: ids of those that listen on the port. total: their proportional memory, bytes.

    limit: the smallest limit of the control group and the groups above it, bytes; None for none. place: its file. Of
    this process if no other one listens.
    """

    processes: tuple[int, ...]
    total: int
    limit: int | None
    place: str


def memory_use(port: int) -> MemoryUse | None:
    """The memory of the processes that listen on a port; None where /proc is not there."""
    if not (_PROC / "self" / "status").exists():
        return None
    processes = tuple(_listening(port))
    limit, place = _limit(processes[0] if processes else os.getpid())
    return MemoryUse(processes, sum(map(_proportional_bytes, processes)), limit, place)


def _listening(port: int) -> Iterator[int]:
    """Ids of processes that have a listening socket with this port."""
    wanted = {f"socket:[{inode}]" for inode in _inodes(port)}
    if not wanted:
        return
    for folder in _PROC.glob("[0-9]*"):
        try:
            sockets = {os.readlink(entry.path) for entry in os.scandir(folder / "fd")}
        except OSError:
            continue  # It has ended, or belongs to another user.
        if sockets & wanted:
            yield int(folder.name)


def _inodes(port: int) -> Iterator[str]:
    """Source: proc(5), /proc/net/tcp: local address, state and inode are the columns 1, 3 and 9."""
    for name in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / name).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for columns in map(str.split, lines):
            if columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                yield columns[9]


def _proportional_bytes(pid: int) -> int:
    """PSS, which counts shared memory once over all processes; RSS where it cannot be read; 0 for an ended process."""
    for file, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            text = (_PROC / str(pid) / file).read_text("ascii", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return 0


def _limit(pid: int) -> tuple[int | None, str]:
    try:
        lines = (_PROC / str(pid) / "cgroup").read_text("utf-8").splitlines()
    except OSError:
        return None, ""
    found: tuple[int | None, str] = None, ""
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        # Within a container the path may be the host's, which is not visible: its root is then the group itself.
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(root):
                break
            value = _number(group / name)
            if value is not None and (found[0] is None or value < found[0]):
                found = value, str(group / name)
    return found


def _number(path: Path) -> int | None:
    try:
        text = path.read_text("ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() and int(text) < _UNLIMITED else None
