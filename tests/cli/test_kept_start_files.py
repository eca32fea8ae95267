"""A worker that dies is replaced while files that its successor reads at the start are damaged or being replaced."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import ssl
import subprocess
import weakref
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import ECKey, KeySet

from ccp.cli import startup
from ccp.cli.handover import LOOK_INTERVAL, StartKeeper
from ccp.errors import ConfigurationError
from ccp.server import settings
from ccp.server.runtime import start_files
from tests.cli.reloaded import Load, Running
from tests.cli.run import COMMAND, ccp_ok, environment
from tests.cli.served_sandbox import own_certificate
from tests.server.storage.storage_keys import write_keys
from tests.waiting import wait_until


def half(*files: Path) -> None:
    """Leave the first half of each file, in place, as a program does that is writing it."""
    for file in files:
        os.truncate(file, file.stat().st_size // 2)


def kill_all(running: Running) -> None:
    """Kill the workers one after the other, and wait for their successors."""
    for worker in [entry["pid"] for entry in running.logged("worker ready")][-running.workers :]:
        ready = len(running.logged("worker ready"))
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda ready=ready: len(running.logged("worker ready")) > ready, timeout=30)  # type: ignore[misc]


def der(certificate: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.read_text())


def replace_in_place(running: Running, folder: Path) -> bytes:
    """Write another pair into the same files. Returns the certificate."""
    folder.mkdir()
    cert, key = own_certificate(folder)
    shutil.copyfile(cert, running.cert)
    shutil.copyfile(key, running.key)
    return der(cert)


def test_workers_are_replaced_while_the_tls_files_are_broken_in_place(tmp_path: Path) -> None:
    running = Running(tmp_path, 2)
    running.configure()
    with running.serving():
        renewed = replace_in_place(running, tmp_path / "renewed")  # Without a signal.
        wait_until(lambda: all(running.presented() == renewed for _ in range(10)))
        wait_until(lambda: len(running.logged("tls certificate reloaded")) == 2)
        with Load(running) as load:  # Its connections end with the workers; new ones must be answered.
            wait_until(lambda: load.answered > 10)
        secret = running.key.read_bytes()
        half(running.cert, running.key)
        wait_until(lambda: len(running.logged("tls certificate not reloaded")) == 2)
        kill_all(running)
        assert {running.presented() for _ in range(10)} == {renewed}
        kept = running.logged("worker starts with kept files")
        assert [entry["level"] for entry in kept] == ["error", "error"]
        assert f"The TLS certificate {running.cert} and key {running.key} cannot be used" in kept[0]["problems"][0]
        holding = [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]
        assert holding == [tmp_path / "renewed" / running.key.name], "nothing writes the private key to disk"
        # New workers follow the files as the others did.
        mended = replace_in_place(running, tmp_path / "mended")
        wait_until(lambda: all(running.presented() == mended for _ in range(10)))
        count = len(running.logged("worker starts with kept files"))
        kill_all(running)
        assert {running.presented() for _ in range(10)} == {mended}
        assert len(running.logged("worker starts with kept files")) == count


def configured(tmp_path: Path) -> tuple[Running, list[Path]]:
    """A pool with every kind of file that a worker reads at its start, and these files."""
    running = Running(tmp_path, 2)
    keys = write_keys(tmp_path / "keys", 1)
    token, secret, jwks = (tmp_path / name for name in ("token", "secret", "jwks.json"))
    token.write_text("a token of the root pool\n".replace(" ", "-"))
    secret.write_text("a secret of the webhook")
    jwks.write_text(str(KeySet([ECKey.generate_key("P-256", {"kid": "k1", "alg": "ES256", "use": "sig"})]).as_dict()))
    jwks.write_text(jwks.read_text().replace("'", '"'))
    running.made += f'\n[[issuers]]\nissuer = "https://id.example"\njwks_file = "{jwks}"\n'
    running.made += 'algorithms = ["ES256"]\nroles = ["cpo"]\n'
    running.options = {
        "secrets_key_file": str(keys), "pcp_webhook_secret_file": str(secret), "rcp_url": "http://127.0.0.1:9",
        "rcp_token_file": str(token), "rate_limit_per_address": 0,
    }  # fmt: skip
    running.configure(**running.options)
    ccp_ok("keys", "rotate-storage", "--config", running.config)
    return running, [running.config, keys, token, secret, jwks, running.cert, running.key]


def test_workers_are_replaced_while_every_file_of_their_start_is_empty(tmp_path: Path) -> None:
    running, files = configured(tmp_path)
    with running.serving():
        contents = {file: file.read_bytes() for file in files}
        for file in files:
            os.truncate(file, 0)
        kill_all(running)
        with Load(running) as load:
            wait_until(lambda: load.answered > 50, describe=load.failures.copy)
        assert load.failures == []
        # Replacement that is asked for needs usable files, and does not begin without them.
        ready = len(running.logged("worker ready"))
        running.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: running.logged("workers not replaced"))
        for file, content in contents.items():
            file.write_bytes(content)
        running.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: len(running.logged("worker ready")) == ready + 2, timeout=30)
        assert len(running.logged("workers not replaced")) == 1


def test_worker_that_fails_on_changed_files_is_replaced_with_the_former_ones(tmp_path: Path) -> None:
    """The key file is well-formed, but lacks the key of the database."""
    running, (_, keys, *_) = configured(tmp_path)
    with running.serving():
        write_keys(keys, 2)
        kill_all(running)
        with Load(running) as load:
            wait_until(lambda: load.answered > 50, describe=load.failures.copy)
        assert load.failures == []
        sentence = "A worker that got the changed settings or files did not start."
        assert [sentence] in [entry["problems"] for entry in running.logged("worker starts with kept files")]


def test_worker_replacement_uses_the_settings_of_the_others(tmp_path: Path) -> None:
    """A file that is half-written may be valid: without the line that names the database it means another one."""
    running = Running(tmp_path, 2)
    running.configure()
    with running.serving():
        running.made = "\n".join(line for line in running.made.splitlines() if not line.startswith("database"))
        running.configure()
        kill_all(running)
        with Load(running) as load:
            wait_until(lambda: load.answered > 50, describe=load.failures.copy)
        assert load.failures == []


def test_worker_is_replaced_after_the_shared_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "shared"))
    running = Running(tmp_path, 2)
    running.configure()
    with running.serving():
        (folder,) = (tmp_path / "shared").glob("opnc-ccp-*")
        shutil.rmtree(folder)
        kill_all(running)
        assert (folder / "limits").stat().st_mode & 0o777 == 0o600
        with Load(running) as load:
            wait_until(lambda: load.answered > 50, describe=load.failures.copy)
        assert load.failures == []


def test_workers_are_replaced_when_the_reader_of_the_log_has_gone(tmp_path: Path) -> None:
    running = Running(tmp_path, 2)
    running.configure()
    command = [*COMMAND, "serve", "--config", str(running.config), "--workers", "2"]
    running.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment())
    pid = running.process.pid

    def workers() -> list[int]:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    try:
        wait_until(running.answers, timeout=40)
        wait_until(lambda: len(workers()) == 2)
        assert running.process.stdout is not None
        running.process.stdout.close()
        first = workers()[0]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: len(workers()) == 2 and first not in workers())
        assert running.token()["Authorization"]
        running.process.terminate()
        assert running.process.wait(30) == 0
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> settings.Settings:
    monkeypatch.setenv("CCP_DATABASE", f"sqlite:///{tmp_path}/ccp.db")
    cert, key = own_certificate(tmp_path)
    return settings.load(tls_cert=cert, tls_key=key)


def test_start_keeper_keeps_contents_until_all_files_can_be_used(
    config: settings.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config.tls_cert is not None
    assert config.tls_key is not None
    keeper = StartKeeper(config, startup.check_worker_files)
    first = keeper.handover()
    assert first.files[config.tls_key].content == config.tls_key.read_bytes()
    half(config.tls_key)
    assert keeper.handover().files == first.files
    config.tls_key.unlink()
    assert keeper.handover().files == first.files
    config.tls_key.write_bytes(first.files[config.tls_key].content)
    second = keeper.handover()
    assert {path: file.content for path, file in second.files.items()} == {
        path: file.content for path, file in first.files.items()
    }
    clock = [0.0]
    monkeypatch.setattr("ccp.cli.handover.time.monotonic", lambda: clock[0])
    config.tls_cert.touch()
    looks: list[Any] = []
    for _ in range(4):
        clock[0] += LOOK_INTERVAL * 10**6
        keeper.look()
        looks.append(keeper._current)
    assert looks[0] is second, "a file that changes now may change on"
    assert looks[1] is not second
    assert looks[3] is looks[1], "files that stay as they are, are read once"


def test_start_keeper_tries_the_newest_again_when_the_former_fail_too(config: settings.Settings) -> None:
    assert config.tls_cert is not None
    keeper = StartKeeper(config, lambda config: startup.check_worker_files(config))
    first = keeper.handover()
    keeper.ready(first)
    config.tls_cert.touch()
    second = keeper.handover()
    assert second is not first
    keeper.failed(second)
    assert keeper.handover() is first
    keeper.failed(first)
    assert keeper.handover() is second


def test_start_keeper_keeps_no_frame_of_its_caller_after_a_failed_check(config: settings.Settings) -> None:
    """A worker that a frame refers to is not released, and its descriptors reach the workers that start later."""
    assert config.tls_key is not None
    keeper = StartKeeper(config, startup.check_worker_files)
    half(config.tls_key)

    class Ended:
        """A worker that has ended."""

    def replace_worker() -> weakref.ref[Ended]:
        ended = Ended()
        assert keeper.handover() is keeper._current
        return weakref.ref(ended)

    gc.collect()
    gc.disable()
    try:
        assert replace_worker()() is None
    finally:
        gc.enable()


def test_start_keeper_refuses_files_that_cannot_be_used_at_first(config: settings.Settings) -> None:
    assert config.tls_key is not None
    half(config.tls_key)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        StartKeeper(config, startup.check_worker_files)


def test_start_files_are_read_from_memory_until_they_are_released(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"before")
    with start_files.recording() as kept:
        assert start_files.read(file) == b"before"
        file.write_bytes(b"after")
        assert start_files.read(file) == b"before", "a check and its repetition read the same"
    assert start_files.read(file) == b"after"
    start_files.use(kept)
    try:
        assert start_files.read(file) == b"before"
        with start_files.file_for_openssl(file) as name:
            assert name.startswith("/proc/self/fd/")
            assert Path(name).read_bytes() == b"before"
        assert start_files.state_of(file) != start_files.state_on_disk(file)
    finally:
        start_files.release()
    assert start_files.read(file) == b"after"
    with start_files.recording() as kept, pytest.raises(OSError, match="more than 3 bytes"):
        start_files.read(file, 3)
    assert kept[file].content == b""
