"""The cost of starting: small commands, workers until they are ready, and the replacement of a killed worker."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ccp.server.sandbox.setup import create
from rig import processes
from rig.report import ROOT, Row

AIMS: Final = (
    "Small commands run alternately with a bare Python (`python -c pass`); the pool starts with one worker and with "
    "two, and is polled on new connections until it answers; a worker is killed (SIGKILL) while clients send "
    "requests. Aims: commands without a server take 0.25 s and 40 MiB at most; a worker is ready after a second of "
    "processor time; a killed worker is replaced within two seconds, and only requests that it had accepted are "
    "lost."
)

_MESSAGE: Final = ROOT / "tests" / "vectors" / "installation_res_iso2_opnc_example.b64"
_CCP: Final = (sys.executable, "-c", "from ccp.cli import main; main()")
_COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "ccp --version": ("--version",),
    "ccp --help": ("--help",),
    "ccp exi decode": ("exi", "decode", str(_MESSAGE)),
}
_MAX_SECONDS: Final = 0.25
_MAX_MEMORY: Final = 40.0
_MAX_RATIO: Final = 40.0
"""Processor time of a command against a bare Python's; 12 to 18 on a quiet machine."""
_MAX_READY: Final = 1.0
_MAX_REPLACED: Final = 2.0
_MAX_FIRST_ANSWER: Final = 2.0
_CLIENTS: Final = 4


@dataclass(frozen=True, slots=True)
class Used:
    """Elapsed seconds, CPU seconds and peak memory in MiB."""

    wall: float
    cpu: float
    memory: float


def run(short: bool, folder: Path) -> Iterator[Row]:
    config = _pool(folder)
    yield from _commands(folder / "pool", 5 if short else 21, short)
    yield from _starts(config, folder, 1 if short else 5, short)
    yield _replacements(config, folder, 1 if short else 5, short)


# --- Commands --------------------------------------------------------------------------------------------------------


def _commands(sandbox: Path, rounds: int, short: bool) -> Iterator[Row]:
    bare = [sys.executable, "-c", "pass"]
    publication = min((sandbox / "samples" / "iso2").glob("publish_*.json"))
    commands = {
        **_COMMANDS,
        "ccp verify --trust DIRECTORY": ("verify", "--trust", str(sandbox / "trust"), str(publication)),
    }
    found: dict[str, list[Used]] = {name: [] for name in ("", *commands)}
    for _ in range(rounds):
        found[""].append(_used(bare))
        for name, arguments in commands.items():
            found[name].append(_used([*_CCP, *arguments]))
    base = _median(found.pop(""))
    for name, each in found.items():
        used = _median(each)
        ratio = used.cpu / base.cpu
        figure = (
            f"{used.wall:.2f} s, {used.cpu:.2f} s of the processor ({ratio:.0f} times a bare Python), "
            f"{used.memory:.0f} MiB"
        )
        if short:
            aim = f"≤ {_MAX_RATIO:.0f} times the processor time of a bare Python, ≤ {_MAX_MEMORY:.0f} MiB"
            holds = ratio <= _MAX_RATIO and used.memory <= _MAX_MEMORY
        else:
            aim = f"≤ {_MAX_SECONDS} s, ≤ {_MAX_MEMORY:.0f} MiB"
            holds = used.wall <= _MAX_SECONDS and used.memory <= _MAX_MEMORY
        yield Row(f"`{name}`", aim, figure, holds, f"Median of {rounds} runs.")


_MEASURE: Final = """
import json, os, sys, time
with open(os.devnull, "wb") as nothing:
    began = time.perf_counter()
    actions = [(os.POSIX_SPAWN_DUP2, nothing.fileno(), each) for each in (1, 2)]
    pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - began
print(json.dumps([os.waitstatus_to_exitcode(status), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
"""


def _used(command: list[str]) -> Used:
    """Measured through a small intermediate process, because a new process inherits the peak memory of its parent."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, *command], capture_output=True, text=True, check=True)
    status, *used = json.loads(done.stdout)
    if status:
        raise RuntimeError(f"{command} ended with {status}.")
    return Used(*used)


def _median(found: list[Used]) -> Used:
    return Used(
        statistics.median(each.wall for each in found),
        statistics.median(each.cpu for each in found),
        statistics.median(each.memory for each in found),
    )


# --- Starts ----------------------------------------------------------------------------------------------------------


def _pool(folder: Path) -> Path:
    """The configuration file of a pool with parties, anchors and contracts."""
    create(folder / "pool", "http://127.0.0.1:8020", datetime.now(UTC), store_samples=True)
    config = folder / "pool" / "ccp.toml"
    config.write_text(config.read_text().replace('log_format = "console"', 'log_format = "json"'))
    return config


@dataclass(slots=True)
class Started:
    """A running `ccp serve`. log: its output so far, one event per line."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    began: float

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def ask(self) -> bool:
        """Whether a request on a new connection is answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        return False

    def until_ready(self, count: int) -> list[int]:
        """Wait until this number of workers have become ready. Returns their process ids, in that order."""
        deadline = time.monotonic() + 60
        while len(events := self.events("worker ready")) < count:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"Workers are not ready:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.01)
        return [event["pid"] for event in events]


@contextlib.contextmanager
def _started(config: Path, folder: Path, workers: int) -> Iterator[Started]:
    port = processes.free_port()
    log = folder / "log"
    command = [*_CCP, "serve", "--config", str(config), "--port", str(port), "--workers", str(workers)]
    with log.open("wb") as output, processes.running(command, output) as process:
        yield Started(process, port, log, time.perf_counter())


def _first_answer(started: Started) -> float:
    """Seconds from the start of the command to its first response."""
    while not started.ask():
        if started.process.poll() is not None or time.perf_counter() - started.began > 60:
            raise RuntimeError(f"No answer:\n{started.log.read_text()[-2000:]}")
        time.sleep(0.005)
    return time.perf_counter() - started.began


def _starts(config: Path, folder: Path, rounds: int, short: bool) -> Iterator[Row]:
    firsts: dict[int, list[float]] = {1: [], 2: []}
    alone, forked, parents, shares = [], [], [], []
    for _ in range(rounds):
        with _started(config, folder, 1) as started:
            firsts[1].append(_first_answer(started))
            alone.append(processes.cpu_seconds(started.process.pid))
        with _started(config, folder, 2) as started:
            firsts[2].append(_first_answer(started))
            pids = started.until_ready(2)
            forked += [processes.cpu_seconds(pid) for pid in pids]
            parents.append(processes.cpu_seconds(started.process.pid))
            shares.append(sum(processes.memory(pid)[1] for pid in (started.process.pid, *pids)))
    note = f"Median of {rounds} starts." if rounds > 1 else ""
    room = 3.0 if short else 1.0  # Of processor time: a busy machine's caches and hyperthreads make all of it slower.
    for what, found, limit in (
        ("processor time until ready: `ccp serve` with one worker", alone, _MAX_READY * room),
        ("processor time until ready: each of two workers", forked, _MAX_READY * room),
    ):
        used = statistics.median(found)
        yield Row(what, f"≤ {limit:g} s", f"{used:.2f} s", used <= limit, note)
    for workers, found in firsts.items():
        first = statistics.median(found)
        what = f"from the command to the first answer, {'one worker' if workers == 1 else 'two workers'}"
        if short:
            yield Row(what, "none", f"{first:.1f} s", None)
        else:
            yield Row(what, f"≤ {_MAX_FIRST_ANSWER} s", f"{first:.2f} s", first <= _MAX_FIRST_ANSWER, note)
    yield Row(
        "two workers and their parent at rest: memory (PSS), processor time of the parent", "none",
        f"{statistics.median(shares):.0f} MiB, {statistics.median(parents):.2f} s", None, note,
    )  # fmt: skip


# --- Replacements ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ClientLoad:
    """Clients that send requests repeatedly, each on new connections, and their outcomes."""

    answered: int = 0
    failed: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def ask(self, started: Started) -> None:
        while not self.stop.is_set():
            if started.ask():
                self.answered += 1
            else:
                self.failed += 1
            time.sleep(0.005)


def _replacements(config: Path, folder: Path, rounds: int, short: bool) -> Row:
    seconds = []
    asked = ClientLoad()
    with _started(config, folder, 2) as started:
        _first_answer(started)
        pids = started.until_ready(2)
        clients = [threading.Thread(target=asked.ask, args=(started,)) for _ in range(_CLIENTS)]
        for client in clients:
            client.start()
        for number in range(rounds):
            time.sleep(0 if short else 6)  # Of workers that end within five seconds of their start, a delay is meant.
            began = time.perf_counter()
            os.kill(pids[-1], signal.SIGKILL)
            pids = started.until_ready(3 + number)
            seconds.append(time.perf_counter() - began)
        asked.stop.set()
        for client in clients:
            client.join()
    lost = rounds * _CLIENTS  # Of each client one request that the killed worker had accepted.
    limit = 20.0 if short else _MAX_REPLACED
    return Row(
        "a worker of two killed while clients ask: until another one is ready",
        f"≤ {limit:g} s, every other request is answered",
        f"{max(seconds):.2f} s at most in {rounds} round{'s' if rounds > 1 else ''}; {asked.answered:,} answered, "
        f"{asked.failed} lost with the killed",
        max(seconds) <= limit and asked.failed <= lost and asked.answered > 0,
        f"Lost may be what the killed worker had accepted: {lost} at most, one of each client and kill.",
    )
