"""OpenSSL's OCSP responder on loopback."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ccp.testing.pki import Credential
from tests.scripted_server import unused_port


@contextmanager
def openssl_responder(
    folder: Path,
    issuer: Credential,
    statuses: Mapping[int, datetime | None],
    *,
    responder: Credential | None = None,
    port: int | None = None,
) -> Iterator[str]:
    """`openssl ocsp` for one CA, for as long as the block lasts. Yields its address.

    statuses: serial number to the time of revocation, None for the status good; others are unknown to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    signer = responder or issuer
    (folder / "ca.pem").write_bytes(issuer.certificate.pem())
    (folder / "signer.pem").write_bytes(signer.certificate.pem())
    key = signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "signer.key").write_bytes(key)
    lines = [
        f"{'V' if when is None else 'R'}\t491231235959Z\t{'' if when is None else f'{when:%y%m%d%H%M%SZ}'}"
        f"\t{_even(serial)}\tunknown\t/CN={serial}"
        for serial, when in statuses.items()
    ]
    (folder / "index.txt").write_text("\n".join(lines) + "\n")
    port = port or unused_port()
    command = [
        "openssl", "ocsp", "-port", str(port), "-index", "index.txt", "-CA", "ca.pem", "-rsigner", "signer.pem",
        "-rkey", "signer.key", "-nmin", "60", "-nrequest", "500", "-timeout", "30",
    ]  # fmt: skip
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        _wait_for(port, process, folder / "log.txt")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        # Not by connecting: that would be its first request, and it serves one after another.
        if b"ACCEPT" in log.read_bytes():
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"openssl ocsp did not start: {log.read_text()}")
        time.sleep(0.02)


def _even(serial: int) -> str:
    text = f"{serial:X}"
    return text if len(text) % 2 == 0 else "0" + text
