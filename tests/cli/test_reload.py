"""SIGHUP reloads settings and TLS files in every worker; no request fails and no connection is closed."""

from __future__ import annotations

import gc
import os
import resource
import signal
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from ccp.server import settings
from ccp.server.reloading import SettingsReloader
from tests.cli.reloaded import Load, Running
from tests.cli.run import COMMAND, environment
from tests.cli.served_sandbox import BASE, own_certificate
from tests.waiting import wait_until


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
