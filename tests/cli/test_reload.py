"""SIGHUP reloads settings and TLS files in every worker; no request fails and no connection is closed."""

from __future__ import annotations

import gc
import http.client
import json
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from ccp.server import settings
from ccp.server.reloading import SettingsReloader
from tests.cli.run import COMMAND, ccp_ok, environment
from tests.cli.served_sandbox import BASE, Sandbox, free_port, own_certificate
from tests.deploy.tools import DEPLOY
from tests.waiting import wait_until

UNIT = DEPLOY / "systemd" / "ccp.service"
ANY_CERTIFICATE = ssl.create_default_context()
ANY_CERTIFICATE.check_hostname, ANY_CERTIFICATE.verify_mode = False, ssl.CERT_NONE


class Running:
    """A served sandbox with TLS, its settings file and its log."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.port, self.workers = folder, free_port(), workers
        ccp_ok("sandbox", folder / "pool", "--port", self.port, "--store")
        self.sandbox = Sandbox(folder / "pool")
        self.config = folder / "pool" / "ccp.toml"
        self.made = self.config.read_text().replace(f"http://127.0.0.1:{self.port}", f"https://127.0.0.1:{self.port}")
        self.cert, self.key = own_certificate(folder)
        self.process: subprocess.Popen[bytes]

    def configure(self, **values: Any) -> None:
        lines = {"tls_cert": str(self.cert), "tls_key": str(self.key), "log_level": "info", **values}
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
        beside = self.config.with_suffix(".new")
        beside.write_text(text + self.made)
        os.replace(beside, self.config)

    @contextmanager
    def serving(self) -> Iterator[None]:
        with (self.folder / "log").open("wb") as log:
            command = [*COMMAND, "serve", "--config", str(self.config), "--workers", str(self.workers)]
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environment(CCP_LOG_FORMAT="json"))
        try:
            wait_until(self.answers, timeout=40, describe=(self.folder / "log").read_text)
            if self.workers > 1:
                wait_until(lambda: len(self.logged("worker ready")) == self.workers)
            yield
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(30) in (0, -signal.SIGTERM)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    def answers(self) -> bool:
        assert self.process.poll() is None
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5):
                return True
        except OSError:
            return False

    def reload(self) -> None:
        """As `systemctl reload` does."""
        (command,) = re.findall(r"^ExecReload=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE)
        subprocess.run(command.replace("$MAINPID", str(self.process.pid)).split(), check=True)

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = (self.folder / "log").read_text().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]
        return [line for line in found if line["event"] == event]

    def token(self) -> dict[str, str]:
        party = next(party for party in self.sandbox.credentials["parties"] if party["role"] == "cpo")
        form = {name: party[name] for name in ("client_id", "client_secret")}
        url = f"https://127.0.0.1:{self.port}/oauth/token"
        answer = httpx.post(url, data={"grant_type": "client_credentials", **form}, verify=ANY_CERTIFICATE)
        return {"Authorization": f"Bearer {answer.json()['access_token']}", "Content-Type": "application/json"}

    def presented(self) -> bytes | None:
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=5) as plain,
            ANY_CERTIFICATE.wrap_socket(plain) as connection,
        ):
            return connection.getpeercert(binary_form=True)

    def connection(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=ANY_CERTIFICATE)


@dataclass
class Load:
    """Clients that deliver contracts without a pause, each on one connection that must stay open."""

    running: Running
    clients: int = 4
    answered: int = 0
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._stop = threading.Event()
        headers, body = self.running.token(), json.dumps(self.running.sandbox.samples("request")[0])
        self._threads = [threading.Thread(target=self._ask, args=(headers, body)) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, headers: dict[str, str], body: str) -> None:
        connection = self.running.connection()
        connection.connect()
        first = connection.sock
        while not self._stop.is_set():
            try:
                connection.request("POST", f"{BASE}/signedcontractdata", body, headers)
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException) as exc:
                self.failures.append(repr(exc))
                return
            if answer.status != 200 or b"temporary" in text:
                self.failures.append(f"{answer.status} {text[:200]!r}")
            if connection.sock is not first:
                self.failures.append("the connection was closed")
                return
            self.answered += 1
        connection.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_reload_under_load_fails_no_request_and_closes_no_connection(tmp_path: Path, workers: int) -> None:
    running = Running(tmp_path, workers)
    running.configure()
    (tmp_path / "new").mkdir()
    new = own_certificate(tmp_path / "new")
    der = ssl.PEM_cert_to_DER_cert(new[0].read_text())
    with running.serving():
        processes = len(running.logged("worker ready"))
        with Load(running) as load:
            wait_until(lambda: load.answered > 20)
            for number in range(1, 4):
                running.configure(rate_limit_per_party=1000 + number)
                running.reload()
                wait_until(lambda number=number: len(running.logged("settings reloaded")) == number)  # type: ignore[misc]
            # Another pair of files, named by the settings.
            running.cert, running.key = new
            running.configure(log_level="debug")
            running.reload()
            wait_until(lambda: running.presented() == der)
            wait_until(lambda: all(running.presented() == der for _ in range(10)), describe=load.failures.copy)
            before = load.answered
            wait_until(lambda: load.answered > before + 50)
        assert load.failures == []
        assert len(running.logged("worker ready")) == processes, "no worker was replaced"
    changes = [entry["changed"] for entry in running.logged("settings reloaded") if entry["level"] == "info"]
    assert changes[:3] == [["rate_limit_per_party"]] * 3
    assert changes[3] == ["log_level", "rate_limit_per_party", "tls_cert", "tls_key"]
    own = [entry for entry in running.logged("settings reloaded") if entry["level"] == "debug" and entry["changed"]]
    assert len(own) == (0 if workers == 1 else workers), "each worker, by its new level"


@pytest.mark.parametrize("workers", [1, 2])
def test_reload_applies_rates_and_names_what_needs_a_restart(tmp_path: Path, workers: int) -> None:
    running = Running(tmp_path, workers)
    running.configure()
    with running.serving():
        headers = running.token()

        def admitted(count: int) -> int:
            found = 0
            for _ in range(count):
                connection = running.connection()  # A new one for each request, so that every worker answers some.
                connection.request("GET", f"{BASE}/contractData/emaid/DEEXAC00000001", headers=headers)
                found += connection.getresponse().status != 429
                connection.close()
            return found

        assert admitted(24) == 24
        running.configure(rate_limit_per_party=1, max_body=100_000, database_connections=3)
        running.reload()
        wait_until(lambda: running.logged("settings reloaded"))
        time.sleep(0.1)  # A worker gets the signal after its parent has logged.
        began = time.monotonic()
        assert admitted(24) <= 3 + (time.monotonic() - began)
        (entry,) = running.logged("settings reloaded")
        assert entry["changed"] == ["rate_limit_per_party"]
        assert entry["needs_restart"] == ["database_connections", "max_body"]


@pytest.mark.parametrize("workers", [1, 2])
def test_reload_of_an_unusable_file_keeps_the_settings_and_is_one_event(tmp_path: Path, workers: int) -> None:
    running = Running(tmp_path, workers)
    running.configure()
    with running.serving():
        running.config.write_text("rate_limit_per_party = 'many'\nrate_limit_per_partie = 1\n")
        running.reload()
        wait_until(lambda: running.logged("settings not reloaded"))
        with Load(running) as load:
            wait_until(lambda: load.answered > 50)
        assert load.failures == []
        running.configure(log_level="debug")
        running.reload()
        wait_until(lambda: running.logged("settings reloaded"))
    (entry,) = running.logged("settings not reloaded")
    assert entry["level"] == "error"
    assert any("rate_limit_per_partie" in reason for reason in entry["problems"])
    assert any(reason.startswith("rate_limit_per_party") for reason in entry["problems"])


@pytest.mark.parametrize("workers", [1, 2])
def test_reload_during_the_start_is_not_lost(tmp_path: Path, workers: int) -> None:
    running = Running(tmp_path, workers)
    running.configure()
    with (tmp_path / "log").open("wb") as log:
        command = [*COMMAND, "serve", "--config", str(running.config), "--workers", str(workers)]
        running.process = subprocess.Popen(command, stderr=log, stdout=log, env=environment(CCP_LOG_FORMAT="json"))
    try:
        wait_until(lambda: running.logged("pool starting"), timeout=40)
        running.configure(rate_limit_per_party=7)
        running.reload()
        wait_until(lambda: running.logged("settings reloaded"), describe=(tmp_path / "log").read_text)
    finally:
        running.process.kill()
        running.process.wait()


def test_reload_of_tls_files_during_the_start_is_not_lost(tmp_path: Path) -> None:
    """The signal arrives while the application starts, before anything listens."""
    running = Running(tmp_path, 1)
    running.configure()
    (tmp_path / "new").mkdir()
    running.cert, running.key = own_certificate(tmp_path / "new")
    der = ssl.PEM_cert_to_DER_cert(running.cert.read_text())
    with (tmp_path / "log").open("wb") as log:
        command = [*COMMAND, "serve", "--config", str(running.config)]
        running.process = subprocess.Popen(command, stderr=log, stdout=log, env=environment(CCP_LOG_FORMAT="json"))
    try:
        wait_until(lambda: running.logged("pool starting"), timeout=40)
        running.configure()
        running.reload()
        wait_until(running.answers, timeout=40, describe=(tmp_path / "log").read_text)
        assert running.presented() == der
    finally:
        running.process.kill()
        running.process.wait()


@pytest.mark.parametrize("workers", [1, 2])
def test_reload_survives_any_file_and_a_storm_of_signals(tmp_path: Path, workers: int) -> None:
    running = Running(tmp_path, workers)
    running.configure()
    with running.serving():
        pids = len(running.logged("worker ready"))
        for number, text in enumerate(("a = " + "[" * 5000, "# " + "x" * (1 << 20), ""), 1):
            running.config.write_text(text)
            if not text:
                running.config.unlink()
                running.config.mkdir()
            running.reload()
            wait_until(lambda number=number: len(running.logged("settings not reloaded")) == number)  # type: ignore[misc]
        running.config.rmdir()
        running.configure(rate_limit_per_party=100_000)
        with Load(running) as load:
            wait_until(lambda: load.answered > 20)
            for _ in range(300):
                running.process.send_signal(signal.SIGHUP)
            running.configure(rate_limit_per_party=100_000, log_level="debug")
            running.reload()
            wait_until(lambda: any("log_level" in each["changed"] for each in running.logged("settings reloaded")))
            before = load.answered
            wait_until(lambda: load.answered > before + 50)
        assert load.failures == []
        assert len(running.logged("worker ready")) == pids
    problems = [" ".join(entry["problems"]) for entry in running.logged("settings not reloaded")]
    assert "nested too deeply" in problems[0]
    assert "too big" in problems[1]
    assert "cannot be read" in problems[2]


def test_reload_of_unusable_tls_files_does_not_keep_a_worker_from_being_replaced(tmp_path: Path) -> None:
    """Workers that start later take the files that are in use, not those that were refused."""
    running = Running(tmp_path, 2)
    running.configure()
    with running.serving():
        before = running.presented()
        (tmp_path / "other").mkdir()
        own_certificate(tmp_path / "other")
        running.cert = tmp_path / "other" / running.cert.name  # It does not belong to the key.
        running.configure()
        running.reload()
        wait_until(lambda: len(running.logged("tls certificate not reloaded")) == 2)
        os.kill(running.logged("worker ready")[0]["pid"], signal.SIGKILL)
        wait_until(lambda: len(running.logged("worker ready")) == 3, timeout=30)
        assert {running.presented() for _ in range(10)} == {before}


def test_reload_of_unusable_tls_files_keeps_the_certificate(tmp_path: Path) -> None:
    running = Running(tmp_path, 1)
    running.configure()
    with running.serving():
        before = running.presented()
        (tmp_path / "other").mkdir()
        own_certificate(tmp_path / "other")
        running.cert = tmp_path / "other" / running.cert.name  # It does not belong to the key.
        running.configure()
        running.reload()
        wait_until(lambda: running.logged("tls certificate not reloaded"))
        assert running.presented() == before


def test_reload_keeps_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCP_DATABASE", f"sqlite:///{tmp_path}/ccp.db")
    reloader = SettingsReloader(settings.load())

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    for _ in range(5):
        assert reloader.reload()
    before = resident()
    for _ in range(150):
        assert reloader.reload()
    gc.collect()
    assert resident() - before < 4_000_000
