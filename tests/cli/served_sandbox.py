"""Runs `ccp serve` as a process of its own, for instance on a sandbox; reads a sandbox's directory."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ccp import verify as installation
from ccp.ids import Namespace
from tests.cli.run import COMMAND, environment
from tests.world import response_bytes

BASE = "/opnc/v1/ccp"


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(
    url: str,
    *arguments: object,
    verify: ssl.SSLContext | bool = True,
    log: Path | None = None,
    temporary: Path | None = None,
    **how: Any,
) -> Iterator[httpx.Client]:
    """`ccp serve` as a process of its own until the block ends, after which it must exit in order.

    log: file for its output. temporary: folder for its temporary files.
    """
    env = environment(**({"TMPDIR": str(temporary)} if temporary else {}))
    with open(log or "/dev/null", "wb") as err:
        process = subprocess.Popen([*COMMAND, "serve", *map(str, arguments)], stderr=err, stdout=err, env=env, **how)
    try:
        with httpx.Client(base_url=url, verify=verify, timeout=10) as http:
            deadline = time.monotonic() + 30
            while True:
                assert process.poll() is None, log.read_text() if log else "it ended"
                try:
                    http.get("/health").raise_for_status()
                except httpx.TransportError:
                    assert time.monotonic() < deadline, "the server did not start"
                    time.sleep(0.05)
                else:
                    break
            yield http
        process.send_signal(signal.SIGTERM)
        # uvicorn raises the signal again after an orderly shutdown.
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


class Sandbox:
    """A sandbox's directory, as its user reads it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.credentials = json.loads((directory / "credentials.json").read_text())
        self.url: str = self.credentials["base_url"]

    def samples(self, kind: str) -> list[dict[str, Any]]:
        found = sorted(self.directory.glob(f"samples/*/{kind}_*.json"))
        assert found
        return [json.loads(path.read_text()) for path in found]

    def token(self, http: httpx.Client, role: str) -> dict[str, str]:
        """The header with which the first party of a role calls."""
        party = next(party for party in self.credentials["parties"] if party["role"] == role)
        form = {name: party[name] for name in ("client_id", "client_secret")}
        answer = http.post(self.credentials["token_url"], data={"grant_type": "client_credentials", **form})
        assert answer.status_code == 200, answer.text
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def ask(http: httpx.Client, sandbox: Sandbox, cpo: dict[str, str]) -> list[dict[str, Any]]:
    """Post every sample request, each of which must get a contract. Returns the items of the answers."""
    items = []
    for body in sandbox.samples("request"):
        answer = http.post(f"{BASE}/signedcontractdata", json=body, headers=cpo)
        assert answer.status_code == 200, answer.text
        items += answer.json()["signedContractDataCollection"]
    for item in items:
        response = installation.read_response(response_bytes(item), Namespace(item["xsdMsgDefNamespace"]))
        assert response.response_code == "OK"
    return items


def own_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ccp test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"
