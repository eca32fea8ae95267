"""OCSP responses of other implementations, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509 import ocsp

from ccp.testing.pki import CONTRACT, OCSP_RESPONDER, PKI, StatusURLs, subject_name
from tests.scripted_server import Reply, Scripted, scripted
from tests.server.trust.revocation.made import answer, ocsp_response, unused
from tests.world import AT, Pool, start


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with scripted() as running:
        yield running


@pytest.fixture(scope="module")
def pki(server: Scripted) -> PKI:
    """The provisioning service's certificate names a responder; no other certificate names anything."""
    named = {"CPS Sub2 CA SIM": StatusURLs(ocsp=server.url + "/ocsp")}
    return PKI.generate(AT, status_urls=lambda name: named.get(name, StatusURLs()))


@pytest.fixture(scope="module")
def pool(pki: PKI) -> Iterator[Pool]:
    with start({"iso2": pki}, egress_allow_networks=("127.0.0.0/8",)) as running:
        yield running


def put(pool: Pool, server: Scripted, data: bytes) -> httpx.Response:
    """Publish while the responder says this, and nothing is known yet."""
    server.on("/ocsp", Reply(body=data))
    pool.sql("delete from evidence")
    return pool.cps.put("/signedcontractdata", json=pool.contract(pool.car()).body)


def test_ocsp_responder_certificate_may_be_last(pool: Pool, pki: PKI, server: Scripted) -> None:
    leaf, issuer = pki.cps.certificate, pki.cps_sub2
    responder = issuer.issue("OCSP", OCSP_RESPONDER, now=AT)
    others = [pki.emsp_sub2.issue(f"Other {number}", CONTRACT, now=AT).certificate.x509 for number in range(9)]
    own = responder.certificate.x509
    answered = put(pool, server, ocsp_response(issuer, leaf, responder.key, [*others, own], responder=own))
    assert answered.status_code == 201, answered.text


def test_ocsp_error_names_an_rsa_responder_key(pool: Pool, pki: PKI, server: Scripted) -> None:
    leaf, issuer = pki.cps.certificate, pki.cps_sub2
    key = rsa.generate_private_key(65537, 2048)
    purpose = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.OCSP_SIGNING])
    builder = x509.CertificateBuilder(
        issuer.certificate.x509.subject,
        subject_name("RSA OCSP"),
        key.public_key(),
        77,
        leaf.not_before,
        leaf.not_after,
    ).add_extension(purpose, False)
    certificate = builder.sign(issuer.key, hashes.SHA256())
    answered = put(pool, server, ocsp_response(issuer, leaf, key, [certificate], responder=certificate))
    assert answered.status_code == 503
    assert 'The key type of certificate \\"RSA OCSP\\" is not supported (RSA).' in answered.text


def test_ocsp_signature_with_unused_bits_is_refused(pool: Pool, pki: PKI, server: Scripted) -> None:
    data, signature = b"", b"\1"
    while signature[-1] & 1:
        data = answer(pki.cps.certificate, pki.cps_sub2)
        signature = ocsp.load_der_ocsp_response(data).signature
    answered = put(pool, server, unused(data, signature))
    assert answered.status_code == 503
    assert "The signature of the OCSP response claims unused bits." in answered.text
    assert put(pool, server, data).status_code == 201
