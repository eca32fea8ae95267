"""TLS of the client: the CA that it trusts, and its own certificate."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ccp.client import TLS, NoResponseError
from ccp.errors import ConfigurationError
from tests.client.either import KINDS, connect
from tests.scripted_server import json_reply, scripted
from tests.world import AT

EMAID = "DEEXAC00000001"
pytestmark = pytest.mark.parametrize("kind", KINDS)


def make(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate that vouches for itself, for the loopback address, and its key: two PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(AT - timedelta(days=1))
        .not_valid_after(AT + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    files = folder / f"{name}.pem", folder / f"{name}.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def test_tls_trusts_the_configured_ca_only(tmp_path: Path, kind: str) -> None:
    certificate, key = make(tmp_path, "pool")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with scripted(context) as server:
        server.on(f"/opnc/v1/ccp/contractData/emaid/{EMAID}", json_reply({"contractDataCollection": []}))
        for tls in (TLS(ca_file=certificate), TLS(verify=False), TLS(ca_file=certificate).context()):
            with connect(kind, server.url, token="t", tls=tls) as client:
                assert client.contracts_of_emaid(EMAID) == ()
        heard = len(server.received)
        with connect(kind, server.url, token="t") as client, pytest.raises(NoResponseError) as caught:
            client.contracts_of_emaid(EMAID)
        assert not caught.value.outcome_unknown
        assert len(server.received) == heard


def test_tls_sends_the_client_certificate(tmp_path: Path, kind: str) -> None:
    certificate, key = make(tmp_path, "pool")
    own, own_key = make(tmp_path, "client")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(own)
    context.verify_mode = ssl.CERT_REQUIRED
    with scripted(context) as server:
        server.on(f"/opnc/v1/ccp/contractData/emaid/{EMAID}", json_reply({"contractDataCollection": []}))
        with connect(kind, server.url, token="t", tls=TLS(certificate, own, own_key)) as client:
            assert client.contracts_of_emaid(EMAID) == ()
        with connect(kind, server.url, token="t", tls=TLS(certificate)) as client, pytest.raises(NoResponseError):
            client.contracts_of_emaid(EMAID)


def test_tls_rejects_unusable_files_at_once(tmp_path: Path, kind: str) -> None:
    certificate, _ = make(tmp_path, "pool")
    for tls in (TLS(tmp_path / "nothing.pem"), TLS(certificate, certificate, certificate)):
        with pytest.raises(ConfigurationError, match="TLS"), connect(kind, "https://127.0.0.1:9", token="t", tls=tls):
            pass
