"""Certificate signing requests, and the answers to them."""

from __future__ import annotations

import base64
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from tests.world import Pool

EVSE = "DE*EXC*E0001"
ENROL = "/.well-known/cpo/simpleenroll"


def signing_request(common_name: str | None = EVSE, key: Any = None) -> x509.CertificateSigningRequest:
    """A request of a charging station. common_name: None for an empty subject."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    names = [] if common_name is None else [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    digest = None if isinstance(key, Ed448PrivateKey) else hashes.SHA256()
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names)).sign(key, digest)


def der(request: x509.CertificateSigningRequest) -> bytes:
    return request.public_bytes(serialization.Encoding.DER)


def post(
    pool: Pool, body: bytes, path: str = ENROL, caller: str | None = "cpo", kind: str | None = "application/pkcs10"
) -> httpx.Response:
    """caller: None for no token. kind: the Content-Type, None for none."""
    headers = {"Authorization": f"Bearer {pool.token(caller)}"} if caller else {}
    if kind is not None:
        headers["Content-Type"] = kind
    return pool.http.post(path, content=body, headers=headers)


def enrol(
    pool: Pool, request: x509.CertificateSigningRequest, path: str = ENROL, caller: str = "cpo"
) -> httpx.Response:
    return post(pool, base64.b64encode(der(request)), path, caller)


def certificates(answer: httpx.Response) -> list[x509.Certificate]:
    """The certificates of an answer, which must be certs-only."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/pkcs7-mime; smime-type=certs-only"
    assert answer.headers["content-transfer-encoding"] == "base64"
    assert "x-internal" not in answer.headers
    return pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer.content))
