"""Client certificates for certificate-bound tokens: of the party emsp (OURS), and of another client (OTHER)."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NOW = datetime.now(UTC)
HEADER = "X-Client-Cert"
"""The header in which the pool's proxy passes the certificate."""


@dataclass(frozen=True)
class Credential:
    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def thumbprint(self) -> str:
        return base64.urlsafe_b64encode(hashlib.sha256(self.der).digest()).rstrip(b"=").decode()

    @property
    def escaped(self) -> str:
        """As nginx writes $ssl_client_escaped_cert."""
        return quote(self.pem.decode(), safe="")

    def save(self, folder: Path, name: str) -> tuple[Path, Path]:
        private = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{name}.pem").write_bytes(self.pem)
        (folder / f"{name}.key").write_bytes(private)
        return folder / f"{name}.pem", folder / f"{name}.key"


def credential(name: str, issuer: Credential | None = None) -> Credential:
    """Issue a certificate for localhost and 127.0.0.1; without an issuer, that of a self-signed CA."""
    key = generate_private_key(SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    above = issuer.certificate.subject if issuer else subject
    validity = (NOW - timedelta(days=1), NOW + timedelta(days=1))
    builder = (
        x509.CertificateBuilder(above, subject, key.public_key(), x509.random_serial_number(), *validity)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")]),
            critical=False,
        )
    )
    return Credential(builder.sign((issuer.key if issuer else key), hashes.SHA256()), key)


CA = credential("Example CA")
OURS, OTHER = credential("emsp", CA), credential("other", CA)
