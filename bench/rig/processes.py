"""Servers on loopback, each ended by process id, and their CPU time and memory."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")
HERE = Path(__file__).parent
_COMMAND = (sys.executable, "-c", "from ccp.cli import main; main()")


@dataclass(frozen=True, slots=True)
class Server:
    """A tree of processes. pids: the first processes. port: 0 without HTTP."""

    port: int
    pids: tuple[int, ...]

    def cpu(self) -> float:
        """CPU seconds, user and system, of all processes of the tree, including ended ones."""
        return sum(cpu_seconds(pid) for first in self.pids for pid in tree(first))

    def workers(self) -> list[int]:
        """The processes that serve requests: the children of a supervisor, otherwise the first ones."""
        children = [
            pid
            for first in self.pids
            for pid in tree(first)[1:]
            if b"spawn_main" in _command(pid) or _command(pid) == _command(first)  # The latter where it was forked.
        ]
        return children or list(self.pids)


def environment(**changes: str) -> dict[str, str]:
    """The environment of a server that is measured: it does not build the documentation meanwhile."""
    return {**os.environ, "CCP_DOCUMENTATION": "false", **changes}


@contextmanager
def serving(config: Path, database: str, workers: int, log: Path) -> Iterator[Server]:
    """A real `ccp serve`; it logs to a file, with the default level."""
    port = free_port()
    options = ["--config", str(config), "--port", str(port), "--workers", str(workers), "--database", database]
    with log.open("ab") as output, running([*_COMMAND, "serve", *options], output) as process:
        yield _ready(port, (process,), "/health/ready", log, workers)


@contextmanager
def constant(answer: Path, workers: int, log: Path) -> Iterator[Server]:
    """An application that answers every request with the content of a file, under the pool's uvicorn."""
    port = free_port()
    command = [sys.executable, str(HERE / "constant.py"), str(answer), str(port), str(workers)]
    with log.open("ab") as output, running(command, output) as process:
        yield _ready(port, (process,), "/", log, workers)


@contextmanager
def bare(config: Path, database: str, processes: int, log: Path) -> Iterator[Server]:
    """The bare protocol: this number of processes on one port."""
    port = free_port()
    command = [sys.executable, str(HERE / "bare.py"), str(config), database, str(port)]
    with log.open("ab") as output, contextlib.ExitStack() as stack:
        started = tuple(stack.enter_context(running(command, output)) for _ in range(processes))
        yield _ready(port, started, "/", log, 1)


@contextmanager
def running(command: list[str], log: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment())
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _ready(port: int, processes: tuple[subprocess.Popen[bytes], ...], path: str, log: Path, workers: int) -> Server:
    server = Server(port, tuple(process.pid for process in processes))
    deadline = time.monotonic() + 60
    while True:
        if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
            raise RuntimeError(f"A server did not start:\n{log.read_text(errors='replace')[-2000:]}")
        with contextlib.suppress(OSError, urllib.error.URLError, http.client.HTTPException):
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
            break
        time.sleep(0.1)
    _settle(server, deadline)
    return server


def _settle(server: Server, deadline: float) -> None:
    """Wait until the other workers have started too, that is until no process uses the CPU."""
    before, quiet = server.cpu(), 0
    while quiet < 3 and time.monotonic() < deadline:
        time.sleep(0.25)
        now = server.cpu()
        quiet = quiet + 1 if now - before <= 0.03 else 0
        before = now


def end_in_order() -> None:
    """Leave every `with` block at SIGTERM, so that all started processes end. A second SIGTERM is ignored."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def tree(pid: int) -> list[int]:
    """A process and its descendants; empty if it has ended."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def child_named(name: str) -> int | None:
    """A child of this process, by the name of its program."""
    for pid in tree(os.getpid())[1:]:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                return pid
    return None


def cpu_seconds(pid: int) -> float:
    """CPU seconds, user and system, of a process; 0 if it has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS  # User and system, its own and of children that it waited for.
    return 0.0


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def memory(pid: int) -> tuple[float, float]:
    """Memory of a process in MiB: resident, and proportional (shared pages divided among their processes)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = {name: int(kib) / 1024 for name, kib in re.findall(r"^(Rss|Pss):\s+(\d+) kB", rollup, re.M)}
    return sizes["Rss"], sizes["Pss"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
