"""TLS: its versions and ciphers, the client's certificate, clients that do not agree on anything."""

from __future__ import annotations

import hashlib
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ccp.server.http import client_certificate, protocol, tls
from ccp.server.http.uvicorn_options import uvicorn_options
from ccp.server.settings import Settings
from ccp.testing.pki import PKI
from tests.cli.served_sandbox import own_certificate
from tests.server.http.guards.raw import Raw
from tests.world import AT, Pool, start


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return own_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secure(pkis: dict[str, PKI], files: tuple[Path, Path]) -> Iterator[Pool]:
    """A pool that speaks TLS. Its fixture's own client does not, so tests connect by themselves."""
    with start({"iso2": pkis["iso2"]}, tls_cert=files[0], tls_key=files[1]) as running:
        yield running


def handshake(pool: Pool, context: ssl.SSLContext) -> ssl.SSLSocket:
    address = ("127.0.0.1", int(pool.base_url.rsplit(":", 1)[1]))
    return context.wrap_socket(socket.create_connection(address, timeout=5), server_hostname="127.0.0.1")


def trusting(files: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(files[0]))


def test_tls_1_3_is_what_is_agreed_on_and_1_2_what_is_possible(secure: Pool, files: tuple[Path, Path]) -> None:
    with handshake(secure, trusting(files)) as connection:
        assert connection.version() == "TLSv1.3"
    older = trusting(files)
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    with handshake(secure, older) as connection:
        assert connection.version() == "TLSv1.2"
        cipher = connection.cipher()
        assert cipher is not None
        assert cipher[0].startswith("ECDHE-")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tls_of_an_older_version_or_a_weaker_cipher_is_not_agreed_on(secure: Pool, files: tuple[Path, Path]) -> None:
    old = trusting(files)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    weak = trusting(files)
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA:AES128-GCM-SHA256")
    for context in (old, weak):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(secure, context)


def test_tls_answers_say_that_there_is_nothing_but_tls(secure: Pool, files: tuple[Path, Path]) -> None:
    with handshake(secure, trusting(files)) as connection:
        raw = Raw(connection)
        raw.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = raw.answer()
    assert answer is not None
    assert answer.status == 200
    assert answer.headers["strict-transport-security"] == "max-age=31536000"


def test_refusal_over_tls_arrives_and_the_connection_ends(secure: Pool, files: tuple[Path, Path]) -> None:
    with handshake(secure, trusting(files)) as connection:
        raw = Raw(connection)
        raw.send("GET / HTTP/1.1\r\n\r\n")
        (answer,) = raw.answers()
    assert answer.refused(400) == "The request needs the header Host, once."


def test_client_that_does_not_say_hello_is_let_go(
    pkis: dict[str, PKI], files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_TIMEOUT", 1.0)
    with start({"iso2": pkis["iso2"]}, tls_cert=files[0], tls_key=files[1]) as pool:
        address = ("127.0.0.1", int(pool.base_url.rsplit(":", 1)[1]))
        began = time.monotonic()
        with socket.create_connection(address, timeout=8) as connection:
            assert connection.recv(1) == b""
        assert 0.9 < time.monotonic() - began < 4


def _issued(name: str, issuer: Any = None) -> tuple[x509.Certificate, Any]:
    """A certificate and its key; self-signed, as a CA, without an issuer."""
    key = generate_private_key(SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate, signing = issuer or (None, key)
    built = (
        x509.CertificateBuilder(
            certificate.subject if certificate else subject,
            subject,
            key.public_key(),
            x509.random_serial_number(),
            AT - timedelta(days=1),
            AT + timedelta(days=1),
        )
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
        .sign(signing, hashes.SHA256())
    )
    return built, key


def _write(folder: Path, name: str, issued: tuple[x509.Certificate, Any]) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key.pem"
    certificate.write_bytes(issued[0].public_bytes(Encoding.PEM))
    key.write_bytes(issued[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, key


def test_clients_certificate_stands_in_the_scope(
    pkis: dict[str, PKI], files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = _issued("example CA")
    partner = _issued("example partner", ca)
    stranger = _issued("a stranger", _issued("another CA"))
    authorities, _ = _write(tmp_path, "ca", ca)
    scopes = []
    accept = protocol.Connection._accept

    def noted(self: protocol.Connection, *args: Any, **named: Any) -> None:
        scopes.append(self.scope)
        accept(self, *args, **named)

    monkeypatch.setattr(protocol.Connection, "_accept", noted)
    config = {"tls_cert": files[0], "tls_key": files[1], "tls_client_ca": authorities}
    with start({"iso2": pkis["iso2"]}, **config) as pool:
        context = trusting(files)
        context.load_cert_chain(*_write(tmp_path, "partner", partner))
        with handshake(pool, context) as connection:
            raw = Raw(connection)
            raw.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = raw.answer()
            assert answer is not None
            assert answer.status == 200
        for chain in (None, _write(tmp_path, "stranger", stranger)):
            context = trusting(files)
            if chain is not None:
                context.load_cert_chain(*chain)
            with pytest.raises((ssl.SSLError, ConnectionError)), handshake(pool, context) as connection:  # noqa: PT012
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                if not connection.recv(1):
                    raise ConnectionResetError
    (scope,) = scopes
    assert hashlib.sha256(scope[client_certificate.SCOPE_KEY]).digest() == partner[0].fingerprint(hashes.SHA256())


def test_scope_without_tls_has_no_certificate(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    scopes = []
    accept = protocol.Connection._accept

    def noted(self: protocol.Connection, *args: Any, **named: Any) -> None:
        scopes.append(self.scope)
        accept(self, *args, **named)

    monkeypatch.setattr(protocol.Connection, "_accept", noted)
    assert pool.http.get("/health").status_code == 200
    assert scopes[0][client_certificate.SCOPE_KEY] is None  # type: ignore[typeddict-item]


def test_uvicorn_options_can_be_handed_to_new_processes(files: tuple[Path, Path]) -> None:
    import pickle

    config = Settings(tls_cert=files[0], tls_key=files[1])
    uvicorn_config = uvicorn.Config("ccp.server.app:create_app", factory=True, **uvicorn_options(config))
    assert pickle.loads(pickle.dumps(uvicorn_config)).http == "ccp.server.http.protocol:Connection"
    assert not uvicorn_config.proxy_headers
