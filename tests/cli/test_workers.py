"""Several workers on one port: the first answers at once, the killed are replaced, all end with their parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from urllib.request import urlopen

import pytest

from ccp.cli.supervisor import RestartDelay
from tests.cli.run import SOURCE, ccp_ok, environment
from tests.cli.served_sandbox import Sandbox, free_port
from tests.cli.served_sandbox import serving as pool

_PROGRAM = """
import sys
from ccp.cli import startup, workers
port = int(sys.argv[1])
workers.run("tests.cli.small_app:create", startup.bind("127.0.0.1", port), factory=True, port=port,
    workers=int(sys.argv[2]), timeout_worker_healthcheck=2, log_level="error")
"""


class Served:
    """A parent and its workers."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], port: int) -> None:
        self.folder = folder
        self.process = process
        self.port = port

    def answer(self) -> int:
        """The worker that answers a request on a connection of its own. Raises OSError."""
        with urlopen(f"http://127.0.0.1:{self.port}/", timeout=10) as answer:
            return int(answer.read())

    def started(self) -> list[int]:
        """All workers that have ever begun to start, in that order."""
        return [int(file.name.removeprefix("started-")) for _, file in sorted(self.starts())]

    def starts(self) -> list[tuple[float, Path]]:
        """When workers began to start, in seconds, each with its file. A file is empty until it is written."""
        files = ((file.read_text(), file) for file in self.folder.glob("started-*"))
        return [(float(text), file) for text, file in files if text]

    def workers(self) -> list[int]:
        return children(self.process.pid)

    def answering(self, wanted: int = 2) -> set[int]:
        """Wait until so many workers answer. Returns them."""
        found: set[int] = set()

        def enough() -> bool:
            found.add(self.answer())
            found.intersection_update(self.workers())
            return len(found) >= wanted

        until(enough)
        return found

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@contextmanager
def serving(folder: Path, workers: int = 2) -> Iterator[Served]:
    port = free_port()
    command = [sys.executable, "-c", _PROGRAM, str(port), str(workers)]
    with (folder / "log").open("wb") as log:
        env = environment(SMALL_APP=str(folder))
        process = subprocess.Popen(command, cwd=SOURCE, stdout=log, stderr=log, env=env)
    served = Served(folder, process, port)
    try:
        yield served
        process.terminate()
        process.wait(30)
    finally:
        for pid in [*served.started(), process.pid]:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)


def test_workers_port_answers_while_one_worker_is_ready(tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    with serving(tmp_path) as served:
        until(lambda: served.answer() > 0)
        until(lambda: len(served.workers()) == 2)
        first = served.started()[0]
        assert {served.answer() for _ in range(20)} == {first}
        (tmp_path / "slow").unlink()
        assert len(served.answering()) == 2


def test_workers_killed_worker_is_replaced(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        before = served.answering()
        outcomes: list[int | str] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                try:
                    outcomes.append(served.answer())
                except OSError as exc:
                    outcomes.append(str(exc))

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(set(served.workers()) - before) == 1)
        (new,) = set(served.workers()) - before
        until(lambda: new in outcomes)
        stop.set()
        for client in clients:
            client.join()
        # The killed one may have accepted one request of each client that it could not answer any more.
        assert sum(isinstance(outcome, str) for outcome in outcomes) <= len(clients)
        assert len(outcomes) > 20
        assert f'"exit_status": {-signal.SIGKILL}' in served.log or f"exit_status={-signal.SIGKILL}" in served.log


def test_workers_hung_worker_is_killed_and_replaced(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        before = served.answering()
        os.kill(min(before), signal.SIGSTOP)
        until(lambda: len(set(served.workers()) - before) == 1 and gone(min(before)))
        assert "worker unresponsive" in served.log


def test_workers_stop_when_their_parent_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        workers = served.answering()
        served.process.kill()
        until(lambda: all(map(gone, workers)))
        with socket.socket() as free:  # The port is free.
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", served.port))
            free.listen()


def test_workers_sigusr2_replaces_all_without_failed_request(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        before = served.answering()
        served.process.send_signal(signal.SIGUSR2)
        until(lambda: served.answer() > 0 and not before & set(served.workers()) and len(served.workers()) == 2)
        assert not served.answering() & before


def test_workers_failed_start_keeps_the_old_workers(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        before = served.answering()
        (tmp_path / "broken").touch()
        served.process.send_signal(signal.SIGUSR2)
        until(lambda: "worker replacement failed" in served.log)
        assert served.answering() == before
        # And one that ends is tried again until it can start.
        os.kill(min(before), signal.SIGKILL)
        until(lambda: served.log.count("RuntimeError: a start that fails") >= 2)
        assert served.answer() == max(before)
        (tmp_path / "broken").unlink()
        assert max(before) in served.answering()


def test_workers_failed_first_start_exits_with_status_3(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with serving(tmp_path) as served:
        assert served.process.wait(30) == 3
    assert served.log.count("RuntimeError: a start that fails") == 1


def test_workers_repeated_exits_delay_the_restart(tmp_path: Path) -> None:
    (tmp_path / "dying").touch()
    with serving(tmp_path) as served:
        until(lambda: len(served.started()) >= 4)
        times = sorted(at for at, _ in served.starts())
        delays = [later - earlier for earlier, later in pairwise(times)]
        assert delays[0] >= 0.5
        assert delays[1] >= 1.0
        assert delays[2] >= 2.0
        (tmp_path / "dying").unlink()
        until(lambda: served.answer() > 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_are_forked_from_a_parent_without_open_files(tmp_path: Path) -> None:
    ccp_ok("sandbox", tmp_path / "DIR", "--port", free_port(), "--store")
    sandbox = Sandbox(tmp_path / "DIR")
    config = sandbox.directory / "ccp.toml"
    with pool(sandbox.url, "--config", config, "--workers", 2, log=tmp_path / "log"):
        (parent,) = [child for child in children(os.getpid()) if str(config).encode() in command_of(child)]
        until(lambda: len(children(parent)) == 2)
        assert {command_of(child) for child in children(parent)} == {command_of(parent)}, "forked, not spawned"
        assert len(os.listdir(f"/proc/{parent}/task")) == 1
        files = [os.readlink(file) for file in Path(f"/proc/{parent}/fd").iterdir()]
        assert not [file for file in files if "ccp.db" in file or file.endswith("limits")]
        assert len([file for file in files if file.startswith("socket:")]) == 3, (
            "the port, and a pair that signals wake"
        )
    assert "Traceback" not in (tmp_path / "log").read_text()


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("ready", [True, False])
def test_restart_delay_doubles_up_to_a_limit(ready: bool) -> None:
    delay = RestartDelay()
    delays = [delay.next(ready=ready, age=0.1) for _ in range(10)]
    assert delays == [min(2.0 if ready else 30.0, 0.5 * 2**number) for number in range(10)]
    assert delay.next(ready=True, age=60.0) == 0.0
    assert delay.next(ready=ready, age=0.1) == 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it never is")
def test_fork_is_safe_only_without_threads() -> None:
    program = (
        "import threading\nfrom ccp.cli.supervisor import fork_is_safe\nbefore = fork_is_safe()\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\nprint(before, fork_is_safe())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
