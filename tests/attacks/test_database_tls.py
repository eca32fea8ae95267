"""TLS to a PostgreSQL server: which CAs vouch for it, and what is said where none does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ccp.errors import ConfigurationError
from ccp.server.storage import connect
from ccp.server.storage.engine import schema
from ccp.server.storage.engine.schema_version import HEAD
from tests.cli.run import ccp, ccp_ok
from tests.databases import NOT_HERE, Server, binaries


@dataclass(frozen=True)
class Secured:
    """A server with a certificate for 127.0.0.1. url: of a database with the schema. ca: the file of its CA."""

    url: str
    ca: Path


def signed(name: str, key: EllipticCurvePrivateKey, issuer: str, by: EllipticCurvePrivateKey, *, ca: bool) -> bytes:
    now = datetime.now(UTC)

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    if not ca:
        address = x509.IPAddress(ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    return builder.sign(by, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    if binaries() is None:
        pytest.skip(NOT_HERE)
    server = Server()
    try:
        authority, key = generate_private_key(SECP256R1()), generate_private_key(SECP256R1())
        ca = tmp_path_factory.mktemp("ca") / "ca.pem"
        ca.write_bytes(signed("Example CA", authority, "Example CA", authority, ca=True))
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        server.use_tls(signed("127.0.0.1", key, "Example CA", authority, ca=False), private)
        try:
            server.start()
        except AssertionError:
            if "SSL is not supported by this build" in server.log:
                pytest.skip("this PostgreSQL is built without TLS")
            raise
        yield Secured(server.database(), ca)
    finally:
        server.close()


@pytest.fixture(autouse=True)
def _nothing_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("PGSSLMODE", "PGSSLROOTCERT", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


def used(url: str) -> None:
    """By what commands and migrations use, and by the store."""
    assert schema.revision(url) == HEAD
    assert schema.upgrade(url) == (HEAD, HEAD)

    async def open_and_close() -> None:
        store = connect(url)
        await store.open()
        await store.close()

    asyncio.run(open_and_close())


def refused(url: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        schema.revision(url)
    done = ccp("db", "status", env={"CCP_DATABASE": url})
    assert (done.status, done.err) == (1, f"ccp: {caught.value}\n")
    return str(caught.value)


@pytest.mark.parametrize(
    "query", ["sslmode=verify-full", "sslrootcert=system", "sslmode=verify-full&sslrootcert=system"]
)
def test_ca_certificates_of_the_system_count_without_a_file_of_cas(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    sentence = refused(f"{secured.url}?{query}")
    assert sentence == (
        "The database server's certificate is not accepted: unable to get local issuer certificate. "
        "Without sslrootcert=FILE in the URL the CAs of the system count."
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(secured.ca))  # By which OpenSSL knows the CAs of the system.
    used(f"{secured.url}?{query}")
    env = {"CCP_DATABASE": f"{secured.url}?{query}"}
    assert ccp_ok("db", "status", env=env).out == f"found {HEAD}, needed {HEAD}\n"


@pytest.mark.parametrize("mode", ["verify-full", "verify-ca"])
def test_ca_certificates_of_a_file_count_alone(secured: Secured, tmp_path: Path, mode: str) -> None:
    used(f"{secured.url}?sslmode={mode}&sslrootcert={secured.ca}")
    other = generate_private_key(SECP256R1())
    (tmp_path / "other.pem").write_bytes(signed("Other CA", other, "Other CA", other, ca=True))
    sentence = refused(f"{secured.url}?sslmode={mode}&sslrootcert={tmp_path / 'other.pem'}")
    assert sentence.startswith("The database server's certificate is not accepted: ")
    assert "system" not in sentence
    nowhere = tmp_path / "nowhere.pem"
    sentence = refused(f"{secured.url}?sslmode={mode}&sslrootcert={nowhere}")
    assert sentence == f"There is no file {nowhere} with the CAs of the database server's certificate."


def test_name_in_the_certificate_has_to_be_the_hosts(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(secured.ca))
    url = secured.url.replace("127.0.0.1", "localhost")
    assert "ostname mismatch" in refused(f"{url}?sslmode=verify-full")


def test_database_tls_mode_that_would_accept_any_server_is_refused(secured: Secured) -> None:
    assert refused(f"{secured.url}?sslmode=verify-ca").startswith("sslmode=verify-ca needs sslrootcert=FILE; ")
    assert refused(f"{secured.url}?sslmode=require&sslrootcert=system") == (
        "sslrootcert=system goes with sslmode=verify-full."
    )
    assert refused(f"{secured.url}?sslmode=verify-all") == (
        "sslmode is one of disable, allow, prefer, require, verify-ca, verify-full."
    )
    assert refused(f"{secured.url}?sslmode=verify_ca").startswith("sslmode=verify-ca needs sslrootcert=FILE; ")
