"""The machine of an operator: a pool from the wheel, under a user of its own, and cars that ask it all the time."""

from __future__ import annotations

import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from ccp.client import Client, Credentials, Delivered
from ccp.testing.partners import Car, new_session_id
from tests.cli.served_sandbox import free_port
from tests.deploy.tools import DEPLOY

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Step:
    """A step that was done. seconds: by the wall clock."""

    name: str
    how: str
    seconds: float


class NotPossible(Exception):
    """The machine lacks something that a first day needs, such as a package index."""


class Machine:
    """The operator's machine. root: a new folder that every user may enter."""

    def __init__(self, root: Path, user: str | None) -> None:
        self.root, self.steps = root, list[Step]()
        self.etc, self.home = root / "etc", root / "home"
        self.bin = root / "venv" / "bin"
        self.port, self.settings = free_port(), self.etc / "ccp.toml"
        self.as_user: list[str] = []
        for folder in (self.etc, self.home):
            folder.mkdir(mode=0o750)
            if user is not None:
                shutil.chown(folder, user, user)
        if user is not None:
            self.as_user = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--"]
        self._process: subprocess.Popen[bytes] | None = None
        self._user = user

    @contextmanager
    def step(self, name: str, how: str) -> Iterator[None]:
        """Do a step, and note how long it took. how: the command, or what does it."""
        began = time.monotonic()
        yield
        self.steps.append(Step(name, how, time.monotonic() - began))
        print(f"{self.steps[-1].seconds:7.1f} s  {name}", flush=True)

    # The machine.

    @property
    def environment(self) -> dict[str, str]:
        """What the service's user has: none of the variables of this program."""
        return {"HOME": str(self.home), "CCP_CONFIG": str(self.settings), "PATH": f"{self.bin}:/usr/bin:/bin"}

    def ccp(self, *arguments: object, stdin: str = "", accepted: tuple[int, ...] = (0,)) -> str:
        """Run a command of the pool as the service's user. Returns its standard output."""
        command = [*self.as_user, str(self.bin / "ccp"), *map(str, arguments)]
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=self.home,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode in accepted, f"ccp {' '.join(map(str, arguments))}: {done.stdout}{done.stderr}"
        return done.stdout

    def install(self) -> None:
        """Build the wheel and install it, with the pinned versions of its dependencies."""
        for command in (
            (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", self.root / "wheel", ROOT),
            (sys.executable, "-m", "venv", self.root / "venv"),
        ):
            run_command(*command)
        wheel = next((self.root / "wheel").glob("*.whl"))
        pinned = DEPLOY / "constraints.txt"
        run_command(self.bin / "pip", "install", "--quiet", "--constraint", pinned, f"{wheel}[server]")

    def write(self, file: Path, text: str, mode: int = 0o640) -> None:
        """Write a file of the service's user."""
        file.write_text(text)
        file.chmod(mode)
        if self._user is not None:
            shutil.chown(file, self._user, self._user)

    def start(self) -> None:
        """Start what the unit names, and wait until the pool is ready."""
        unit = (DEPLOY / "systemd" / "ccp.service").read_text("utf-8")
        found = re.search(r"^ExecStart=/opt/ccp/bin/(.*)$", unit, re.MULTILINE)
        assert found is not None
        with (self.root / "log").open("ab") as log:
            program, *arguments = found[1].split()
            self._process = subprocess.Popen(
                [*self.as_user, str(self.bin / program), *arguments],
                env=self.environment,
                cwd=self.home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 90
        while True:
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/health/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)

    def reload(self) -> None:
        """What `systemctl reload ccp` does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """What `systemctl stop ccp` does. Leaves no process: a user with processes cannot be removed."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                assert self._process.wait(60) in (0, -signal.SIGTERM), self.log
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
                self._process = None

    @property
    def log(self) -> str:
        return (self.root / "log").read_text(errors="replace")[-6000:]


def run_command(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(each) for each in command],
        env={**{name: value for name, value in os.environ.items() if not name.startswith("CCP_")}, **environment},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    if done.returncode and ("No matching distribution" in done.stderr or "Could not find" in done.stderr):
        raise NotPossible(f"The package index does not answer: {done.stderr[-300:]}")
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-1500:]}{done.stderr[-1500:]}"
    return done.stdout


@contextmanager
def service_user(folder: Path) -> Iterator[str | None]:
    """A system user without a login, as root; otherwise None: everything runs under the present user."""
    if os.geteuid() != 0 or shutil.which("useradd") is None or shutil.which("setpriv") is None:
        yield None
        return
    name = f"ccp-day-{os.getpid()}"
    run_command("useradd", "--system", "--user-group", "--home-dir", folder, "--shell", "/usr/sbin/nologin", name)
    try:
        command = ["setpriv", "--reuid", name, "--regid", name, "--clear-groups", "--", sys.executable, "-V"]
        allowed = subprocess.run(command, capture_output=True, check=False).returncode == 0
        if not allowed:
            print("The service's user may not run this Python, which is in a private folder; the present user does.")
        yield name if allowed else None
    finally:
        run_command("userdel", name)


class Load:
    """Cars that ask again and again, in four threads; counts responses, and keeps failures."""

    def __init__(self, url: str, car: Car, credentials: Credentials, ca: Path) -> None:
        self.delivered, self.failures = 0, list[str]()
        self._ends, self._lock = threading.Event(), threading.Lock()
        context = ssl.create_default_context(cafile=str(ca))
        self._threads = [
            threading.Thread(target=self._ask, args=(url, car, credentials, context), name=f"car {number}")
            for number in range(4)
        ]

    def _ask(self, url: str, car: Car, credentials: Credentials, context: ssl.SSLContext) -> None:
        while not self._ends.is_set():
            # A new client, and so a new TLS connection, for every tenth request.
            with Client(url, credentials=credentials, tls=context) as pool:
                for _ in range(10):
                    try:
                        result = pool.deliver(car.request(new_session_id()), car.namespace)
                        problem = None if isinstance(result, Delivered) else "no contract"
                    except Exception as exc:
                        problem = f"{type(exc).__name__}: {exc}"
                    with self._lock:
                        self.delivered += problem is None
                        if problem is not None:
                            self.failures.append(problem)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(60)

    def wait_for(self, more: int) -> None:
        """Wait until so many more requests were answered."""
        goal, deadline = self.delivered + more, time.monotonic() + 60
        while self.delivered < goal and not self.failures:
            assert time.monotonic() < deadline, "the load has stopped"
            time.sleep(0.02)
