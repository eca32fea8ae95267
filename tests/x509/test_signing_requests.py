"""Certificate signing requests: every damage is an error of the request."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ccp.errors import FieldError
from ccp.testing.pki import PKI
from ccp.x509.signing_requests import read_signing_request

REQUEST = (
    x509.CertificateSigningRequestBuilder()
    .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "DE*EXC*E1")]))
    .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    .public_bytes(Encoding.DER)
)


def test_signing_request_is_read_with_what_it_says(pkis: dict[str, PKI]) -> None:
    request = read_signing_request(base64.b64encode(REQUEST))
    assert (request.der, request.subject, request.common_name) == (REQUEST, "CN=DE*EXC*E1", "DE*EXC*E1")
    assert request.fingerprint == hashlib.sha256(REQUEST).hexdigest()
    assert not request.is_answered_by(pkis["iso2"].v2g_root.certificate)


def even_signature() -> bytes:
    """A request whose signature ends with a zero bit, so that a reader could take that bit for an unused one."""
    while True:
        made = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "DE*EXC*E1")]))
            .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        )
        if made.signature[-1] % 2 == 0:
            return made.public_bytes(Encoding.DER)


def test_signing_request_whose_signature_has_unused_bits_is_refused() -> None:
    request = even_signature()
    signature = x509.load_der_x509_csr(request).signature
    place = len(request) - len(signature) - 1
    assert request[place] == 0
    read_signing_request(request)
    with pytest.raises(FieldError):
        read_signing_request(request[:place] + b"\x01" + request[place + 1 :])


def test_signing_request_with_any_byte_changed_or_cut_off_is_refused() -> None:
    for place in range(len(REQUEST)):
        for change in (0x01, 0x20, 0x80, 0xFF):
            damaged = REQUEST[:place] + bytes([REQUEST[place] ^ change]) + REQUEST[place + 1 :]
            with pytest.raises(FieldError):
                read_signing_request(damaged)
        with pytest.raises(FieldError):
            read_signing_request(base64.b64encode(REQUEST[:place]))


@pytest.mark.parametrize(
    "body", [b"\xff", b"=", b"M===", b"TQ", b"-----BEGIN CERTIFICATE-----", b"0", b"0\x80", b"MIIB" * 4]
)
def test_signing_request_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(FieldError):
        read_signing_request(body)
