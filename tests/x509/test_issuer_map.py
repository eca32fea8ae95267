"""IssuerMap: what an entry matches, before and after its fingerprint is resolved."""

from __future__ import annotations

import pytest

from ccp.errors import ConfigurationError
from ccp.server.settings import load
from ccp.x509.certificates import Certificate
from ccp.x509.issuer_map import IssuerMap, parse_issuer
from ccp.x509.revocation_evidence import CertificateRef, certificate_ref
from ccp.x509.revocation_policy import RevocationPolicy
from tests.x509.made import chain, content, forge, respelled, tlv, twin


@pytest.fixture(scope="module")
def issued() -> tuple[Certificate, Certificate, Certificate]:
    """A leaf, its issuer, and its issuer's certificate in another spelling of the name."""
    whole = chain()
    issuer = whole.sub2.certificate
    respell = forge(
        issuer, whole.sub1.key, lambda tbs: setattr(tbs, "subject", tlv(0x30, respelled(content(tbs.subject))))
    )
    return whole.leaf, issuer, respell


def test_issuer_map_counts_a_fingerprint_for_every_certificate_of_its_issuer(
    issued: tuple[Certificate, Certificate, Certificate],
) -> None:
    leaf, issuer, respell = issued
    lists = IssuerMap({issuer.fingerprint.upper(): "url"})
    assert lists.unresolved == {issuer.fingerprint}
    assert lists.of(issuer) == "url"  # The very certificate needs no resolving.
    assert lists.of(twin(issuer)) is None
    assert not lists.resolve(leaf)
    assert lists.resolve(issuer)
    assert not lists.unresolved
    for other in (twin(issuer), respell, twin(respell)):
        assert other.fingerprint != issuer.fingerprint
        assert lists.of(other) == "url"
    assert lists.of(leaf) is None


def test_contracts_that_were_stored_before_are_matched_by_their_issuer(
    issued: tuple[Certificate, Certificate, Certificate],
) -> None:
    leaf, issuer, respell = issued
    rules = RevocationPolicy(crl_urls={issuer.fingerprint: "url"})
    under_a_twin = certificate_ref(leaf, twin(issuer))
    older = under_a_twin._replace(names=under_a_twin.names[:2])
    oldest = under_a_twin._replace(names=())
    assert [rules.configured_crl(key) for key in (under_a_twin, older, oldest)] == [None] * 3
    rules.issuers.resolve(issuer)
    assert [rules.configured_crl(key) for key in (under_a_twin, older, oldest)] == ["url"] * 3
    assert rules.configured_crl(certificate_ref(leaf, respell)) == "url"
    assert rules.configured_crl(CertificateRef("0" * 64, 1, None, ("0" * 64, "Sub2", "1" * 64))) is None


def test_common_name_is_compared_by_value(issued: tuple[Certificate, Certificate, Certificate]) -> None:
    _, issuer, respell = issued
    lists = IssuerMap({" sub2 ": "url"})
    assert not lists.unresolved
    assert [lists.of(one) for one in (issuer, twin(issuer), respell)] == ["url"] * 3
    assert IssuerMap({"Sub3": "url"}).of(issuer) is None
    assert not IssuerMap({})


@pytest.mark.parametrize("digits", ["AB:" * 31 + "AB", "ab" * 32, " " + "Ab" * 32 + " "])
def test_fingerprint_may_be_written_as_openssl_does(digits: str) -> None:
    assert parse_issuer(digits) == "ab" * 32


@pytest.mark.parametrize("text", ["ab" * 20, "ab" * 33, "AB:" * 19 + "AB", "", "  "])
def test_issuer_map_with_digits_that_are_no_sha256_stops_the_start(text: str) -> None:
    """As a common name they would match no CA, and its certificates would pass."""
    with pytest.raises(ValueError, match="SHA-256"):
        parse_issuer(text)
    with pytest.raises(ConfigurationError, match="crl_urls"):
        load(crl_urls={text: "http://crl.example/"})
    with pytest.raises(ConfigurationError, match="ocsp_sha256"):
        load(ocsp_sha256=(text,))
