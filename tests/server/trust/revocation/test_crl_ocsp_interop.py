"""read_ocsp and read_crl with the output of other software: names by value, unused bits, responders, PEM."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from ccp.testing.pki import CONTRACT, OCSP_RESPONDER, Template, build_root, subject_name
from ccp.x509.certificates import Certificate
from ccp.x509.crl_ocsp import read_crl, read_ocsp
from ccp.x509.distribution_points import distribution_point_names
from ccp.x509.revocation_evidence import EvidenceError, RevocationStatus
from tests.server.trust.revocation.made import AT, DAY, Branch, answer, branch, crl, ocsp_response, unused
from tests.x509.made import content, forge, respelled, tlv

URL = "http://ocsp.example"


@pytest.fixture(scope="module")
def made() -> Branch:
    return branch()


# --- OCSP ---


def test_read_ocsp_finds_the_responder_certificate_anywhere(made: Branch) -> None:
    leaf = made.contract().certificate
    responder = made.sub2.issue("OCSP", OCSP_RESPONDER, now=AT)
    others = [made.sub1.issue(f"Other {number}", CONTRACT, now=AT).certificate.x509 for number in range(9)]
    for by_key in (False, True):
        der = ocsp_response(
            made.sub2,
            leaf,
            responder.key,
            [*others, responder.certificate.x509],
            by_key=by_key,
            responder=responder.certificate.x509,
        )
        assert read_ocsp(der, leaf, made.sub2.certificate, AT, URL).status is RevocationStatus.GOOD


def test_read_ocsp_limits_candidate_responder_certificates(made: Branch) -> None:
    leaf = made.contract().certificate
    responder = made.sub2.issue("OCSP", OCSP_RESPONDER, now=AT)
    decoys = [build_root("x", now=AT).issue("OCSP", OCSP_RESPONDER, now=AT).certificate.x509 for _ in range(8)]
    near = ocsp_response(
        made.sub2, leaf, responder.key, [*decoys[:7], responder.certificate.x509], responder=responder.certificate.x509
    )
    assert read_ocsp(near, leaf, made.sub2.certificate, AT, URL).status is RevocationStatus.GOOD
    far = ocsp_response(
        made.sub2, leaf, responder.key, [*decoys, responder.certificate.x509], responder=responder.certificate.x509
    )
    with pytest.raises(EvidenceError, match="not authorised"):
        read_ocsp(far, leaf, made.sub2.certificate, AT, URL)


@pytest.mark.parametrize("by_key", [False, True])
def test_read_ocsp_names_an_rsa_responder_key(made: Branch, by_key: bool) -> None:
    leaf = made.contract().certificate
    key = rsa.generate_private_key(65537, 2048)
    builder = x509.CertificateBuilder(
        made.sub2.certificate.x509.subject, subject_name("RSA OCSP"), key.public_key(), 77, AT - DAY, AT + DAY
    ).add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.OCSP_SIGNING]), False)
    certificate = builder.sign(made.sub2.key, hashes.SHA256())
    der = ocsp_response(made.sub2, leaf, key, [certificate], by_key=by_key, responder=certificate)
    with pytest.raises(EvidenceError, match=r'The key type of certificate "RSA OCSP" is not supported \(RSA\)'):
        read_ocsp(der, leaf, made.sub2.certificate, AT, URL)


def test_read_ocsp_compares_responder_names_by_value(made: Branch) -> None:
    leaf = made.contract().certificate
    real = made.sub2.issue("OCSP", OCSP_RESPONDER, now=AT)

    def respell(tbs: Any) -> None:
        tbs.subject = tlv(0x30, respelled(content(tbs.subject)))

    sent = forge(real.certificate, made.sub2.key, respell)
    der = ocsp_response(made.sub2, leaf, real.key, [sent.x509], responder=real.certificate.x509)
    assert read_ocsp(der, leaf, made.sub2.certificate, AT, URL).status is RevocationStatus.GOOD


def test_read_ocsp_refuses_unused_signature_bits(made: Branch) -> None:
    leaf = made.contract().certificate
    responder = made.sub2.issue("OCSP", OCSP_RESPONDER, now=AT)
    for signer in (None, responder):
        der, signature = b"", b"\1"
        while signature[-1] & 1:
            der = answer(leaf, made.sub2, responder=signer)
            signature = ocsp.load_der_ocsp_response(der).signature
        assert read_ocsp(der, leaf, made.sub2.certificate, AT, URL).status is RevocationStatus.GOOD
        with pytest.raises(EvidenceError, match="The signature of the OCSP response claims unused bits"):
            read_ocsp(unused(der, signature), leaf, made.sub2.certificate, AT, URL)


# --- CRLs ---


def test_read_crl_refuses_unused_signature_bits(made: Branch) -> None:
    der, signature = b"", b"\1"
    while signature[-1] & 1:
        der = crl(made.sub2)
        signature = x509.load_der_x509_crl(der).signature
    assert read_crl(der, made.sub2.certificate, AT).number == 1
    with pytest.raises(EvidenceError, match="The signature of the CRL claims unused bits"):
        read_crl(unused(der, signature), made.sub2.certificate, AT)


def test_read_crl_compares_the_issuer_by_value(made: Branch) -> None:
    def respell(tbs: Any) -> None:
        tbs.subject = tlv(0x30, respelled(content(tbs.subject)))

    renamed = forge(made.sub2.certificate, made.sub1.key, respell)
    assert read_crl(crl(made.sub2), renamed, AT).issuer == renamed.issuer_key_id
    with pytest.raises(EvidenceError, match="not of"):
        read_crl(crl(made.sub2), made.sub1.certificate, AT)


@pytest.mark.parametrize(
    "before",
    [b"\xef\xbb\xbf", b"\n\n", b"\r\n \r\n", b"Issuer: eMSP Sub2\nNumber 0\n", b"0\n"],
    ids=["byte order mark", "blank lines", "blanks", "text", "text that begins like DER"],
)
def test_read_crl_accepts_pem_after_other_text(made: Branch, before: bytes) -> None:
    pem = x509.load_der_x509_crl(crl(made.sub2)).public_bytes(Encoding.PEM)
    assert read_crl(before + pem, made.sub2.certificate, AT).number == 1
    assert read_crl(before + pem.replace(b"\n", b"\r\n") + b"\nmore\n", made.sub2.certificate, AT).number == 1


def test_read_crl_refuses_malformed_pem(made: Branch) -> None:
    for der in (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----", b"-----BEGIN X509 CRL-----", b""):
        with pytest.raises(EvidenceError, match="cannot be read"):
            read_crl(der, made.sub2.certificate, AT)


def point(**values: object) -> x509.IssuingDistributionPoint:
    flags = ("only_contains_user_certs", "only_contains_ca_certs", "indirect_crl", "only_contains_attribute_certs")
    given = {"full_name": None, "relative_name": None, "only_some_reasons": None, **dict.fromkeys(flags, False)}
    return x509.IssuingDistributionPoint(**{**given, **values})


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


def leaf_at(made: Branch, *points: list[x509.GeneralName]) -> Certificate:
    listed = x509.CRLDistributionPoints([x509.DistributionPoint(names, None, None, None) for names in points])
    template = Template(DAY, key_usage=CONTRACT.key_usage, extra=((listed, False),))
    return made.sub2.issue("DESIMC00000099", template, now=AT).certificate


def test_read_crl_matches_distribution_points_by_any_common_name(made: Branch) -> None:
    directory = x509.DirectoryName(subject_name("CRL"))
    here = "http://crl.example/a"
    leaf = leaf_at(made, [uri("ldap://crl.example/cn=a"), uri(here), directory], [uri("http://crl.example/b")])
    names = distribution_point_names(leaf, here)
    for idp in (
        [uri("LDAP://CRL.example/cn=a")],
        [uri("http://other.example/"), uri("HTTP://Crl.Example/a")],
        [directory],
    ):
        der = crl(made.sub2, extra=((point(full_name=idp), True),))
        assert read_crl(der, made.sub2.certificate, AT, url=here, names=names).number == 1
    for idp in ([uri("http://crl.example/b")], [uri("http://crl.example/A")], [x509.DNSName("crl.example")]):
        der = crl(made.sub2, extra=((point(full_name=idp), True),))
        with pytest.raises(EvidenceError, match="only a part"):
            read_crl(der, made.sub2.certificate, AT, url=here, names=names)


def test_read_crl_accepts_user_crls_of_leaf_cas(made: Branch) -> None:
    only_users = ((point(only_contains_user_certs=True), True),)
    assert made.sub2.certificate.extension(x509.BasicConstraints).path_length == 0  # type: ignore[union-attr]
    leaf = made.contract().certificate
    assert leaf.serial_number in read_crl(crl(made.sub2, leaf, extra=only_users), made.sub2.certificate, AT).revoked
    with pytest.raises(EvidenceError, match="only a part"):
        read_crl(crl(made.sub1, extra=only_users), made.sub1.certificate, AT)
