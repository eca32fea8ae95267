"""What `ccp serve` checks and says when it starts."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cli.run import COMMAND, ccp, ccp_error, environment
from tests.cli.served_sandbox import free_port
from tests.cli.server_certificates import certificate


def variables(folder: Path) -> dict[str, str]:
    """A database in the folder, for a command that runs in this process."""
    return {"CCP_DATABASE": f"sqlite:///{folder}/ccp.db"}


@contextmanager
def starting(folder: Path, *arguments: object, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """`ccp serve` in a folder, as a process that is ended with the block."""
    command = [*COMMAND, "serve", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, env=environment(**variables), text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def reported(folder: Path, *arguments: object, **variables: str) -> tuple[dict[str, Any], list[str]]:
    """The event of a start, and the sentences of its warnings."""
    port = free_port()
    with starting(folder, "--port", port, *arguments, **variables) as process:
        assert process.stderr is not None
        wait_for_port(port, process)
        process.send_signal(signal.SIGTERM)
        events = [json.loads(line) for line in process.stderr]
    (start,) = [event for event in events if event["event"] == "pool starting"]
    return start, [event["sentence"] for event in events if event["event"] == "start warning"]


def wait_for_port(port: int, process: subprocess.Popen[str]) -> None:
    import time

    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return


def test_start_report_names_the_settings_the_database_and_what_it_holds(tmp_path: Path) -> None:
    assert ccp("sandbox", tmp_path / "made", "--port", "8020").status == 0
    start, warnings = reported(tmp_path, "--config", tmp_path / "made" / "ccp.toml", CCP_LOG_FORMAT="json")
    assert start["settings"] == str((tmp_path / "made" / "ccp.toml").resolve())
    assert start["database"] == f"sqlite:///{(tmp_path / 'made' / 'ccp.db').resolve()}"
    assert start["new_database"] is False
    assert start["anchors"].keys() == {"v2g", "emsp", "oem"}
    assert start["parties"] >= 4
    assert (start["peers"], start["tls_valid_until"], start["workers"]) == (0, None, 1)
    assert warnings == []


def test_startup_warns_loudly_of_a_new_database_and_only_once(tmp_path: Path) -> None:
    start, warnings = reported(tmp_path)
    assert start["new_database"] is True
    assert warnings[0].startswith(f"The database sqlite:///{tmp_path}/ccp.db is new and empty.")
    start, warnings = reported(tmp_path)
    assert start["new_database"] is False
    assert [text.split(",")[0] for text in warnings] == ["No certificate is trusted", "There are no parties"]


def test_startup_warns_of_a_plain_port_beyond_loopback(tmp_path: Path) -> None:
    _, warnings = reported(tmp_path, "--host", "0.0.0.0")
    assert any(text.startswith("The pool listens on 0.0.0.0 without TLS") for text in warnings)
    assert any(text.startswith("base_url is not set") for text in warnings)


def test_startup_warns_of_a_certificate_that_expires_or_has_another_name(tmp_path: Path) -> None:
    files = certificate(tmp_path, "ccp.example", "*.pool.example", start=timedelta(days=-1), end=timedelta(days=10))
    options = ("--tls-cert", files[0], "--tls-key", files[1])
    start, warnings = reported(tmp_path, *options, CCP_BASE_URL="https://other.example")
    assert start["tls_valid_until"] is not None
    assert any(text.startswith("The TLS certificate expires on") for text in warnings)
    assert any("is not for other.example" in text and "ccp.example, *.pool.example" in text for text in warnings)
    _, warnings = reported(tmp_path, *options, CCP_BASE_URL="https://one.pool.example:8443")
    assert not any("is not for" in text for text in warnings)


@pytest.mark.parametrize(
    ("start", "end", "sentence"), [(-9, -1, "expired on"), (1, 9, "is not valid before")], ids=["expired", "future"]
)
def test_startup_refuses_a_certificate_that_is_not_valid_now(
    tmp_path: Path, start: int, end: int, sentence: str
) -> None:
    files = certificate(tmp_path, "ccp.example", start=timedelta(days=start), end=timedelta(days=end))
    error = ccp_error("serve", "--tls-cert", files[0], "--tls-key", files[1], env=variables(tmp_path))
    assert sentence in error


def test_startup_refuses_the_key_of_another_certificate(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    span = {"start": timedelta(days=-1), "end": timedelta(days=90)}
    files = certificate(tmp_path, "ccp.example", **span)
    _, other = certificate(tmp_path / "other", "ccp.example", **span)
    error = ccp_error("serve", "--tls-cert", files[0], "--tls-key", other, env=variables(tmp_path))
    assert "cannot be used" in error
    assert "mismatch" in error.lower()


def test_startup_refuses_unusable_tls_files_of_the_audit_stream(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    stream = {"CCP_AUDIT_STREAM": "syslog", "CCP_AUDIT_STREAM_SYSLOG": "tls://127.0.0.1:6514"}
    error = ccp_error("serve", env=variables(tmp_path) | stream | {"CCP_AUDIT_STREAM_CA": f"{tmp_path}/ca.pem"})
    assert error.startswith(f"audit_stream_ca ({tmp_path}/ca.pem) cannot be used")


def test_startup_warns_of_a_file_of_the_audit_stream_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for file, reason in (("missing/audit", "does not exist"), ("link", "it is a symbolic link")):
        variables = {"CCP_AUDIT_STREAM": "file", "CCP_AUDIT_STREAM_FILE": str(tmp_path / file)}
        _, warnings = reported(tmp_path, CCP_LOG_FORMAT="json", **variables)
        (found,) = [warning for warning in warnings if "audit_stream_file" in warning]
        assert reason in found


@pytest.mark.parametrize("workers", [1, 2])
def test_startup_on_a_port_in_use_is_one_sentence_and_no_banner(tmp_path: Path, workers: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = ccp_error("serve", "--port", port, "--workers", workers, env=variables(tmp_path))
    assert error == f"Another process listens on port {port} of 127.0.0.1. Choose another port with --port."


def test_pool_with_one_worker_declines_its_replacement_and_goes_on(tmp_path: Path) -> None:
    port = free_port()
    with starting(tmp_path, "--port", port) as process:
        assert process.stderr is not None
        wait_for_port(port, process)
        process.send_signal(signal.SIGUSR2)
        wait_until_logged(process, "worker replacement declined")
        wait_for_port(port, process)
        assert process.poll() is None


def wait_until_logged(process: subprocess.Popen[str], event: str) -> None:
    """Read the log of a process up to an event."""
    assert process.stderr is not None
    for line in process.stderr:
        if json.loads(line)["event"] == event:
            return
    raise AssertionError(f"the process ended without {event}")


def test_start_report_as_text_has_no_colour_codes_in_a_file(tmp_path: Path) -> None:
    port = free_port()
    with starting(tmp_path, "--port", port, "--workers", 2, CCP_LOG_FORMAT="console") as process:
        assert process.stderr is not None
        wait_for_port(port, process)
        process.send_signal(signal.SIGTERM)
        text = process.stderr.read()
    assert f"\nopnc-ccp on http://127.0.0.1:{port} (new, empty database sqlite:///{tmp_path}/ccp.db," in text
    assert "worker ready" in text
    assert "\x1b" not in text
