"""Checks of systems that the pool only sends to or logs in with: the audit stream's receiver, the OpenID provider."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.run import ccp_ok
from tests.diagnoses import configuration, doctor
from tests.scripted_server import Reply, json_reply, nowhere, scripted
from tests.server.console.openid_provider import openid_provider
from tests.tls_files import PrivateCA

METADATA = "/realm/.well-known/openid-configuration"


class Syslog(socketserver.BaseRequestHandler):
    """Reads to the end, and remembers what it has read."""

    received: bytes = b""

    def handle(self) -> None:
        while data := self.request.recv(4096):
            Syslog.received += data


@contextmanager
def syslog() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Syslog) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ccp_ok("db", "upgrade", "--config", configuration(tmp_path))
    return tmp_path


def test_audit_stream_to_syslog_is_connected_and_gets_no_message(folder: Path) -> None:
    with syslog() as port:
        path = configuration(folder, f'audit_stream = "syslog"\naudit_stream_syslog = "tcp://127.0.0.1:{port}"\n')
        report = doctor("--config", path)
        assert report.facts("audit-stream") == f"tcp://127.0.0.1:{port} takes a connection"
    assert Syslog.received == b"", "the server has read every connection to its end"
    finding = doctor("--config", path).finding("audit-stream.unreachable")
    assert f"tcp://127.0.0.1:{port} did not take the rows" in finding["message"]
    assert doctor("--config", path, "--offline").facts("audit-stream") == "left out: --offline"


def test_audit_stream_to_a_webhook_is_called_without_a_row(folder: Path) -> None:
    secret = "audit-stream-secret-in-no-output"
    with scripted() as receiver:
        receiver.on("/audit", Reply(405))
        lines = f'audit_stream = "webhook"\naudit_stream_url = "{receiver.url}/audit"\n'
        lines += f'audit_stream_secret = "{secret}"\n'
        report = doctor("--config", configuration(folder, lines))
        assert report.facts("audit-stream") == f"{receiver.url}/audit answers (GET: 405)"
        assert [(request.method, request.body) for request in receiver.received] == [("GET", b"")]
    report = doctor("--config", configuration(folder, lines.replace(receiver.url, nowhere())))
    assert "refuses the connection" in report.finding("audit-stream.unreachable")["message"]
    assert secret not in report.text


def test_audit_stream_to_a_file_that_cannot_be_written_is_a_finding(folder: Path) -> None:
    path = configuration(folder, 'audit_stream = "file"\naudit_stream_file = "audit.jsonl"\n')
    assert "audit-stream.unreachable" not in doctor("--config", path).codes
    assert not (folder / "audit.jsonl").exists()
    path = configuration(folder, 'audit_stream = "file"\naudit_stream_file = "absent/audit.jsonl"\n')
    assert "cannot be written" in doctor("--config", path).finding("audit-stream.unreachable")["message"]


def test_openid_provider_is_asked_for_its_metadata(folder: Path) -> None:
    ca = PrivateCA(folder)
    with openid_provider(ca.server()) as provider:

        def path(**changes: str) -> Path:
            members = {
                "issuer": provider.issuer,
                "client_id": "us",
                "ca": str(ca.ca),
                "client_secret": "hunter2-secret",
            }
            table = "\n".join(f"{name} = {json.dumps(value)}" for name, value in (members | changes).items())
            return configuration(folder, f"console = true\n[console_oidc]\n{table}\n")

        assert doctor("--config", path()).facts("openid") == f"{provider.issuer} answers"
        other = PrivateCA(folder, "Another CA")
        untrusted = doctor("--config", path(ca=str(other.ca)))
        finding = untrusted.finding("openid.fails")
        assert "unable to get local issuer certificate" in finding["message"]
        assert "Set console_oidc_ca to the CA" in finding["action"]
        assert "hunter2" not in untrusted.text
        for script, expected in (
            (json_reply({"issuer": "https://other.example"}), "of the issuer 'https://other.example'"),
            (json_reply([]), "200, without an issuer"),
            (Reply(200, b"<html>"), "200, without an issuer"),
            (Reply(503), "503, without an issuer"),
        ):
            provider.server.on(METADATA, script)
            assert expected in doctor("--config", path()).finding("openid.fails")["message"]
    assert "openid.fails" in doctor("--config", path()).codes
