"""read_ocsp and read_crl: authorised signers, covered certificates, validity times."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ccp.testing.pki import (
    CONTRACT,
    EXPLICIT_FALSE,
    OCSP_RESPONDER,
    SUB_CA2,
    Algorithm,
    StatusURLs,
    Template,
    build_root,
)
from ccp.x509.certificates import Certificate
from ccp.x509.crl_ocsp import CLOCK_SKEW, WITHOUT_NEXT_UPDATE, build_ocsp_request, read_crl, read_ocsp
from ccp.x509.revocation_evidence import EvidenceError, RevocationStatus
from tests.server.trust.revocation.made import ALGORITHMS, AT, DAY, HOUR, Branch, answer, branch, crl
from tests.x509.made import forge, tampered

MINUTE = timedelta(minutes=1)
URL = "http://ocsp.example"


@pytest.fixture(scope="module")
def branches() -> dict[Algorithm, Branch]:
    return {algorithm: branch(algorithm) for algorithm in ALGORITHMS}


@pytest.fixture(params=ALGORITHMS)
def made(request: pytest.FixtureRequest, branches: dict[Algorithm, Branch]) -> Branch:
    """A PKI of each algorithm."""
    return branches[request.param]


@pytest.fixture
def p256(branches: dict[Algorithm, Branch]) -> Branch:
    return branches["P-256"]


def test_read_ocsp_good(made: Branch) -> None:
    leaf = made.contract().certificate
    evidence = read_ocsp(answer(leaf, made.sub2), leaf, made.sub2.certificate, AT, URL)
    assert evidence.status is RevocationStatus.GOOD
    assert evidence.serial == leaf.serial_number
    assert evidence.issuer == made.sub2.certificate.issuer_key_id
    assert (evidence.this_update, evidence.next_update) == (AT - MINUTE, AT + HOUR)
    assert evidence.source == f"OCSP {URL}"


@pytest.mark.parametrize("sha256", [False, True])
def test_read_ocsp_revoked_has_the_time(made: Branch, sha256: bool) -> None:
    for certificate, issuer in ((made.contract().certificate, made.sub2), (made.sub2.certificate, made.sub1)):
        der = answer(certificate, issuer, revoked_at=AT - DAY, sha256=sha256)
        evidence = read_ocsp(der, certificate, issuer.certificate, AT, URL)
        assert (evidence.status, evidence.revoked_at) == (RevocationStatus.REVOKED, AT - DAY)


def test_read_ocsp_unknown(made: Branch) -> None:
    leaf = made.contract().certificate
    evidence = read_ocsp(answer(leaf, made.sub2, unknown=True), leaf, made.sub2.certificate, AT, URL)
    assert evidence.status is RevocationStatus.UNKNOWN


def test_read_ocsp_accepts_delegated_responders(made: Branch) -> None:
    leaf = made.contract().certificate
    responder = made.sub2.issue("OCSP", OCSP_RESPONDER, now=AT)
    der = answer(leaf, made.sub2, responder=responder)
    assert read_ocsp(der, leaf, made.sub2.certificate, AT, URL).status is RevocationStatus.GOOD


def test_read_ocsp_accepts_responders_with_explicit_false(p256: Branch) -> None:
    leaf = p256.contract().certificate
    template = Template(DAY, extra=(*OCSP_RESPONDER.extra, (EXPLICIT_FALSE, False)))
    der = answer(leaf, p256.sub2, responder=p256.sub2.issue("OCSP", template, now=AT))
    assert read_ocsp(der, leaf, p256.sub2.certificate, AT, URL).status is RevocationStatus.GOOD


def test_read_ocsp_refuses_unauthorised_responders(made: Branch) -> None:
    leaf = made.contract().certificate
    no_purpose = Template(DAY, key_usage=frozenset({"digital_signature"}))
    cases = {
        "of another CA of the same chain": made.sub1.issue("OCSP", OCSP_RESPONDER, now=AT),
        "of another root": build_root("Other", now=AT).issue("OCSP", OCSP_RESPONDER, now=AT),
        "without OCSPSigning": made.sub2.issue("OCSP", no_purpose, now=AT),
        "another leaf of the issuer": made.sub2.issue("DESIMC00000000", CONTRACT, now=AT),
        "expired": made.sub2.issue("OCSP", OCSP_RESPONDER, now=AT, valid=(AT - 2 * DAY, AT - DAY)),
        "not valid yet": made.sub2.issue("OCSP", OCSP_RESPONDER, now=AT, valid=(AT + HOUR, AT + DAY)),
        "one level below": made.sub2.issue("Sub3", SUB_CA2, now=AT).issue("OCSP", OCSP_RESPONDER, now=AT),
    }
    for name, responder in cases.items():
        der = answer(leaf, made.sub2, responder=responder)
        with pytest.raises(EvidenceError, match="not authorised"):
            raise AssertionError(name, read_ocsp(der, leaf, made.sub2.certificate, AT, URL))


def test_read_ocsp_refuses_forged_responder_certificates(p256: Branch) -> None:
    leaf = p256.contract().certificate
    real = p256.sub2.issue("OCSP", OCSP_RESPONDER, now=AT)
    by_itself = forge(real.certificate, real.key)  # in the issuer's name, signed by the responder
    for certificate in (by_itself, tampered(real.certificate)):
        der = answer(leaf, p256.sub2, responder=replace(real, certificate=certificate))
        with pytest.raises(EvidenceError, match="not authorised"):
            read_ocsp(der, leaf, p256.sub2.certificate, AT, URL)


def test_read_ocsp_refuses_the_issuer_name_with_another_key(made: Branch) -> None:
    leaf = made.contract().certificate
    thief = build_root("eMSP Sub2 CA SIM", now=AT)
    assert thief.certificate.subject_name == made.sub2.certificate.subject_name
    with pytest.raises(EvidenceError, match="signature of the OCSP response"):
        read_ocsp(answer(leaf, made.sub2, responder=thief), leaf, made.sub2.certificate, AT, URL)


def test_read_ocsp_refuses_every_changed_byte(p256: Branch) -> None:
    """A response with one changed byte is rejected or still reports the status good."""
    leaf = p256.contract().certificate
    der = answer(leaf, p256.sub2)
    harmless = 0
    for place in range(len(der)):
        changed = der[:place] + bytes((der[place] ^ 1,)) + der[place + 1 :]
        try:
            assert read_ocsp(changed, leaf, p256.sub2.certificate, AT, URL).status is RevocationStatus.GOOD
            harmless += 1
        except EvidenceError:
            pass
    assert harmless <= 4  # such as the unused NULL beside the hash algorithm, which nothing is read from


def test_read_ocsp_and_crl_refuse_truncated_and_foreign_bytes(p256: Branch) -> None:
    leaf = p256.contract().certificate
    der = answer(leaf, p256.sub2)
    for bad in (*(der[:end] for end in range(len(der))), der + b"\0", b"<html>", bytes.fromhex("30030a0103")):
        with pytest.raises(EvidenceError):
            read_ocsp(bad, leaf, p256.sub2.certificate, AT, URL)


def test_read_ocsp_refuses_other_serial_numbers_and_issuers(made: Branch) -> None:
    leaf, other = made.contract().certificate, made.contract().certificate
    with pytest.raises(EvidenceError, match="another certificate"):
        read_ocsp(answer(other, made.sub2), leaf, made.sub2.certificate, AT, URL)
    # The same serial number and issuer's name, but the issuer has another key.
    twin = branch(ALGORITHMS[0]).sub2
    with pytest.raises(EvidenceError):
        read_ocsp(answer(leaf, twin), leaf, made.sub2.certificate, AT, URL)


def test_read_ocsp_and_crl_check_the_validity_time(p256: Branch) -> None:
    leaf, issuer = p256.contract().certificate, p256.sub2.certificate
    der = answer(leaf, p256.sub2)
    read_ocsp(der, leaf, issuer, AT + HOUR, URL)
    with pytest.raises(EvidenceError, match="stale"):
        read_ocsp(der, leaf, issuer, AT + HOUR + timedelta(seconds=1), URL)
    read_ocsp(der, leaf, issuer, AT - MINUTE - CLOCK_SKEW, URL)
    with pytest.raises(EvidenceError, match="future"):
        read_ocsp(der, leaf, issuer, AT - MINUTE - CLOCK_SKEW - timedelta(seconds=1), URL)


def test_read_ocsp_without_next_update_is_valid_for_hours(p256: Branch) -> None:
    leaf, issuer = p256.contract().certificate, p256.sub2.certificate
    evidence = read_ocsp(answer(leaf, p256.sub2, next_update=None), leaf, issuer, AT, URL)
    assert evidence.next_update == AT - MINUTE + WITHOUT_NEXT_UPDATE
    with pytest.raises(EvidenceError, match="stale"):
        read_ocsp(answer(leaf, p256.sub2, next_update=None), leaf, issuer, AT + WITHOUT_NEXT_UPDATE, URL)


def test_build_ocsp_request_has_no_nonce_and_the_chosen_hash(p256: Branch) -> None:
    leaf = p256.contract().certificate
    for sha256, name in ((False, "sha1"), (True, "sha256")):
        request = x509.ocsp.load_der_ocsp_request(build_ocsp_request(leaf, p256.sub2.certificate, sha256))
        assert request.hash_algorithm.name == name
        assert not list(request.extensions)


def test_ca_certificate_that_is_reissued_is_the_same_issuer(p256: Branch) -> None:
    again = forge(p256.sub2.certificate, p256.sub1.key, lambda tbs: setattr(tbs, "serial_number", 77))
    assert again != p256.sub2.certificate
    assert again.issuer_key_id == p256.sub2.certificate.issuer_key_id
    assert p256.sub1.certificate.issuer_key_id != p256.sub2.certificate.issuer_key_id


# --- CRLs ---


def test_read_crl_lists_revoked_serial_numbers(made: Branch) -> None:
    leaf = made.contract().certificate
    read = read_crl(crl(made.sub2, leaf, number=5), made.sub2.certificate, AT, 4)
    assert read.revoked == {leaf.serial_number: AT - DAY}
    assert (read.number, read.issuer) == (5, made.sub2.certificate.issuer_key_id)
    assert not read_crl(crl(made.sub1), made.sub1.certificate, AT).revoked


def test_read_crl_accepts_pem(p256: Branch) -> None:
    pem = x509.load_der_x509_crl(crl(p256.sub2)).public_bytes(Encoding.PEM)
    assert read_crl(pem, p256.sub2.certificate, AT).number == 1


def test_read_crl_refuses_invalid_crls(made: Branch) -> None:
    issuer = made.sub2.certificate
    cases = {
        "not of": crl(made.sub1),
        "not signed by": crl(replace(made.sub2, key=made.sub1.key)),
        "stale": crl(made.sub2, this_update=AT - 2 * DAY, next_update=AT - DAY),
        "future": crl(made.sub2, this_update=AT + DAY, next_update=AT + 2 * DAY),
        "the one before": crl(made.sub2, number=3),
        "has no number, the one before it had 4": crl(made.sub2, number=None),
        "cannot be read": crl(made.sub2)[:-1],
    }
    for words, der in cases.items():
        with pytest.raises(EvidenceError, match=words):
            read_crl(der, issuer, AT, 4)
    der = crl(made.sub2, number=4)
    for place in range(len(der)):
        with pytest.raises(EvidenceError):
            read_crl(der[:place] + bytes((der[place] ^ 1,)) + der[place + 1 :], issuer, AT, 4)
    assert read_crl(crl(made.sub2, number=4), issuer, AT, 4).number == 4


def test_read_crl_refuses_delta_partial_and_indirect_crls(p256: Branch) -> None:
    def point(**flags: object) -> x509.IssuingDistributionPoint:
        values = dict.fromkeys(
            ("only_contains_user_certs", "only_contains_ca_certs", "indirect_crl", "only_contains_attribute_certs"),
            False,
        )
        return x509.IssuingDistributionPoint(
            **{"full_name": None, "relative_name": None, "only_some_reasons": None, **values, **flags}
        )

    issuer = p256.sub1.certificate
    name = [x509.UniformResourceIdentifier("http://crl.example/part1")]
    partial = (
        (x509.DeltaCRLIndicator(1), True),
        (point(only_contains_user_certs=True), True),
        (point(only_contains_ca_certs=True), True),
        (point(indirect_crl=True), True),
        (point(only_some_reasons=frozenset({x509.ReasonFlags.key_compromise})), True),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\0"), True),
    )
    for extra in partial:
        with pytest.raises(EvidenceError):
            raise AssertionError(extra, read_crl(crl(p256.sub1, extra=(extra,)), issuer, AT))
    named = crl(p256.sub1, extra=((point(full_name=name), True),))
    with pytest.raises(EvidenceError, match="part"):
        read_crl(named, issuer, AT, url="http://crl.example/part2")
    assert read_crl(named, issuer, AT, url="http://crl.example/part1").number == 1
    assert read_crl(named, issuer, AT).number == 1


def test_read_crl_requires_crl_sign(p256: Branch) -> None:
    template = Template(DAY, ca=True, key_usage=frozenset({"key_cert_sign"}))
    issuer = p256.sub1.issue("No lists", template, now=AT)
    with pytest.raises(EvidenceError, match="may not sign CRLs"):
        read_crl(crl(issuer), issuer.certificate, AT)


# --- StatusURLs ---


def test_status_urls_are_read_and_limited() -> None:
    assert branch().contract().certificate.status_urls.present is False
    made = branch(addresses={"sub2": StatusURLs("http://ocsp.example:8080/x", "http://crl.example/1.crl")})
    found = made.contract().certificate.status_urls
    assert (found.ocsp, found.crl) == (("http://ocsp.example:8080/x",), ("http://crl.example/1.crl",))
    assert found.present


def test_status_urls_with_directory_names_only_are_present(p256: Branch) -> None:
    ldap = x509.DistributionPoint([x509.UniformResourceIdentifier("ldap://x/cn=y")], None, None, None)
    many = [
        x509.AccessDescription(
            x509.oid.AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(f"http://{number}.example")
        )
        for number in range(50)
    ]
    template = Template(DAY, extra=((x509.CRLDistributionPoints([ldap]), False),))
    found = p256.sub2.issue("x", template, now=AT).certificate.status_urls
    assert (found.ocsp, found.crl, found.present) == ((), (), True)
    template = Template(DAY, extra=((x509.AuthorityInformationAccess(many), False),))
    assert len(p256.sub2.issue("x", template, now=AT).certificate.status_urls.ocsp) == 3
    only_issuers = x509.AccessDescription(
        x509.oid.AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier("http://ca.example")
    )
    template = Template(DAY, extra=((x509.AuthorityInformationAccess([only_issuers]), False),))
    assert p256.sub2.issue("x", template, now=AT).certificate.status_urls.present is False


def test_status_urls_of_a_non_der_leaf_are_read(p256: Branch) -> None:
    access = StatusURLs("http://ocsp.example").extensions()
    leaf = p256.sub2.issue("x", Template(DAY, extra=((EXPLICIT_FALSE, False), *access)), now=AT).certificate
    assert isinstance(leaf, Certificate)
    assert leaf.status_urls.ocsp == ("http://ocsp.example",)
    assert read_ocsp(answer(leaf, p256.sub2), leaf, p256.sub2.certificate, AT, URL).status is RevocationStatus.GOOD
