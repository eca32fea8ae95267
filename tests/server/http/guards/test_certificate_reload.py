"""The server's certificate is loaded again when its files change; connections and requests go on meanwhile."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ccp.server.http import tls
from ccp.testing.pki import PKI
from tests.cli.served_sandbox import own_certificate
from tests.cli.server_certificates import certificate
from tests.server.access.tokens.client_certificates import CA, credential
from tests.server.http.guards.raw import Raw
from tests.waiting import wait_until
from tests.world import Pool, start

HEALTH = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return own_certificate(tmp_path)


@pytest.fixture
def secure(pkis: dict[str, PKI], files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """A pool that speaks TLS and looks at its files often."""
    monkeypatch.setattr(tls.CertificateWatcher, "INTERVAL", 0.02)
    with start({"iso2": pkis["iso2"]}, tls_cert=files[0], tls_key=files[1]) as running:
        yield running


def connected(pool: Pool) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    address = ("127.0.0.1", int(pool.base_url.rsplit(":", 1)[1]))
    return context.wrap_socket(socket.create_connection(address, timeout=5))


def presented(pool: Pool) -> bytes | None:
    """The certificate that a new connection gets, DER."""
    with connected(pool) as connection:
        return connection.getpeercert(binary_form=True)


def der(file: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(file.read_text())


def replace(files: tuple[Path, Path], new: tuple[Path, Path]) -> None:
    """Put new files into the place of the old ones, as certbot and others do: written beside, then renamed."""
    for target, source in zip(files, new, strict=True):
        beside = target.with_suffix(".new")
        shutil.copy(source, beside)
        os.replace(beside, target)


def test_certificate_reload_uses_new_files_for_new_connections_and_old_ones_go_on(
    secure: Pool, files: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    old = der(files[0])
    with connected(secure) as connection:
        raw = Raw(connection)
        raw.send(HEALTH)
        assert raw.answer().status == 200
        new = own_certificate(tmp_path / "new")
        replace(files, new)
        wait_until(lambda: presented(secure) == der(new[0]))
        raw.send(HEALTH)
        assert raw.answer().status == 200
        assert connection.getpeercert(binary_form=True) == old


@pytest.mark.parametrize("kind", ["mismatch", "garbage", "missing", "expired"])
def test_certificate_reload_keeps_the_certificate_while_files_are_unusable(
    secure: Pool, files: tuple[Path, Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []
    monkeypatch.setattr(tls._log, "error", lambda event, **members: attempts.append(members["reason"]))
    (tmp_path / "new").mkdir()
    old = der(files[0])
    new = own_certificate(tmp_path / "new")
    if kind == "mismatch":
        shutil.copy(new[0], files[0])
    elif kind == "garbage":
        files[0].write_text("no certificate")
    elif kind == "missing":
        files[1].unlink()
    else:
        (tmp_path / "expired").mkdir()
        span = {"start": timedelta(days=-9), "end": timedelta(days=-1)}
        replace(files, certificate(tmp_path / "expired", "ccp.example", **span))
    wait_until(lambda: attempts)
    assert presented(secure) == old
    replace(files, new)
    wait_until(lambda: presented(secure) == der(new[0]))
    assert len(attempts) == 1, "logged once"
    assert x509.load_der_x509_certificate(old)


def test_certificate_reload_uses_new_cas_of_client_certificates_for_new_connections(
    pkis: dict[str, PKI], files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls.CertificateWatcher, "INTERVAL", 0.02)
    other_ca = credential("Other CA")
    client = credential("client", other_ca).save(tmp_path, "client")
    (tmp_path / "ca.pem").write_bytes(CA.pem)
    (tmp_path / "other.pem").write_bytes(other_ca.pem)
    with start({"iso2": pkis["iso2"]}, tls_cert=files[0], tls_key=files[1], tls_client_ca=tmp_path / "ca.pem") as pool:
        context = ssl.create_default_context(cafile=str(files[0]))
        context.load_cert_chain(*client)

        def accepted() -> bool:
            address = ("127.0.0.1", int(pool.base_url.rsplit(":", 1)[1]))
            try:
                plain = socket.create_connection(address, timeout=5)
                with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
                    connection.sendall(HEALTH.encode())
                    return connection.recv(9).startswith(b"HTTP/1.1")
            except OSError:
                return False

        assert not accepted()
        os.replace(tmp_path / "other.pem", tmp_path / "ca.pem")
        wait_until(accepted)


def test_certificate_reload_follows_linked_files(secure: Pool, files: tuple[Path, Path], tmp_path: Path) -> None:
    """A link that points elsewhere is a change, as with certbot's folder `live`."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    new = own_certificate(tmp_path / "two")
    for file, target in zip(files, new, strict=True):
        file.unlink()
        file.symlink_to(target)
    wait_until(lambda: presented(secure) == der(new[0]))


def test_certificate_reload_finds_files_that_changed_while_the_application_started(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The context is made first, then the application starts, then the watcher begins."""
    monkeypatch.setattr(tls.CertificateWatcher, "INTERVAL", 0.02)
    (tmp_path / "new").mkdir()
    new = own_certificate(tmp_path / "new")
    context = tls._file_context(tls.TLSFiles(*files, None), ssl.CERT_NONE)
    replace(files, new)

    async def watch() -> None:
        used: asyncio.Queue[tls.FileContext] = asyncio.Queue()
        watcher = tls.CertificateWatcher(asyncio.get_running_loop(), context, used.put_nowait)
        watcher.start()
        assert await asyncio.wait_for(used.get(), 10) is not context
        watcher.stop()

    asyncio.run(watch())


def test_certificate_with_an_encrypted_key_is_refused_without_a_question(files: tuple[Path, Path]) -> None:
    key = serialization.load_pem_private_key(files[1].read_bytes(), None)
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"a password"),
        )
    )
    with pytest.raises(ValueError, match="the private key is encrypted"):
        tls.usable_certificate(*files)
