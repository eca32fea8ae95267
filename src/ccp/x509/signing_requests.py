"""Certificate signing requests (PKCS#10), as clients of EST send them. Source: RFC 2986; RFC 7030 clause 4.2.1."""

from __future__ import annotations

import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP521R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from ccp.errors import ChainError, FieldError
from ccp.x509.certificates import Certificate
from ccp.x509.der import SEQUENCE, explain_rejection, signature_has_unused_bits
from ccp.x509.names import format_dn
from ccp.x509.parse_errors import parse_errors_as

MAX_BYTES: Final = 16_384
"""As sent. A request for an ISO 15118 certificate has 400 to 800 bytes in DER."""

_PEM: Final = re.compile(
    rb"-----BEGIN (?P<label>(?:NEW )?CERTIFICATE REQUEST|PKCS7|CMS)-----([A-Za-z0-9+/=\s]*)-----END (?P=label)-----"
)
_NOT_KEY: Final = "The key of the certificate signing request is not one of ISO 15118: secp256r1, secp521r1 or Ed448."


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """A certificate signing request that its own key has signed.

    der: PKCS#10. subject: distinguished name. common_name: empty without one. key: SubjectPublicKeyInfo in DER.
    """

    der: bytes
    subject: str
    common_name: str
    key: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER, 64 hexadecimal digits."""
        return hashlib.sha256(self.der).hexdigest()

    def is_answered_by(self, certificate: Certificate) -> bool:
        """Whether a certificate is for the key of the request. One whose key cannot be read is not."""
        try:
            with parse_errors_as(lambda: ChainError("The public key of the certificate cannot be read.")):
                return _key_info(certificate.public_key) == self.key
        except ChainError:
            return False


def read_signing_request(body: bytes) -> SigningRequest:
    """Read a request and verify its signature, which proves possession of the key.

    body: Base64 of DER with any white space, DER, PEM, or Base64 of PEM. Raises FieldError.
    """
    der = unwrap(body, "certificate signing request")
    with parse_errors_as(
        lambda: FieldError(f"The body is {explain_rejection(der, 'a certificate signing request (PKCS#10)')}.")
    ):
        parsed = x509.load_der_x509_csr(der)
    with parse_errors_as(lambda: FieldError(_NOT_KEY)):
        key = parsed.public_key()
    if not (
        isinstance(key, Ed448PublicKey)
        or (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1 | SECP521R1))
    ):
        raise FieldError(_NOT_KEY)
    with parse_errors_as(lambda: FieldError("The signature of the certificate signing request cannot be checked.")):
        valid = parsed.is_signature_valid and not signature_has_unused_bits(der)
    if not valid:
        raise FieldError("The signature of the certificate signing request is wrong: it was not made by its key.")
    with parse_errors_as(lambda: FieldError("The subject of the certificate signing request cannot be read.")):
        names = parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        common_name = str(names[0].value) if len(names) == 1 else ""
        subject = format_dn(parsed.subject)
        return SigningRequest(der, subject, common_name, _key_info(key))


def unwrap(body: bytes, what: str) -> bytes:
    """Return the DER in a body: Base64 with any white space, PEM, Base64 of PEM, or DER itself.

    what: the content in words, for the sentence. Raises FieldError.
    """
    for _ in range(2):
        if body[:1] == bytes([SEQUENCE]):
            return body
        pem = _PEM.search(body)
        text = b"".join((pem[2] if pem else body).split()).rstrip(b"=")
        try:
            body = binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
        except ValueError as exc:
            raise FieldError(f"The body is not a {what} in Base64.") from exc
        if not body:
            raise FieldError(f"The body is empty; it must be a {what} in Base64.")
    return body


def _key_info(key: CertificatePublicKeyTypes) -> bytes:
    """SubjectPublicKeyInfo of a public key, DER."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
