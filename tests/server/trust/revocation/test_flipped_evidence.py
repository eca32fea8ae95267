"""OCSP responses and CRLs with one flipped bit or with times beyond year 9999 raise EvidenceError."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from cryptography import x509

from ccp.testing.pki import OCSP_RESPONDER, Algorithm
from ccp.x509.crl_ocsp import is_ocsp_response, read_crl, read_ocsp
from ccp.x509.revocation_evidence import EvidenceError
from tests.server.trust.revocation.made import ALGORITHMS, AT, answer, branch, crl

COUNT = int(os.environ.get("OPNC_CCP_BIT_FLIPS", "1500"))
URL = "http://pki.example/a.crl"
END_OF_TIME = datetime(9999, 12, 31, 23, 59, tzinfo=UTC)


def flips(der: bytes) -> Iterator[bytes]:
    """As many as are wanted, spread evenly; an odd step meets every bit of a byte."""
    step = 1 if not COUNT else max(1, 8 * len(der) // COUNT) | 1
    for bit in range(0, 8 * len(der), step):
        changed = bytearray(der)
        changed[bit // 8] ^= 0x80 >> bit % 8
        yield bytes(changed)


def refused(read: Callable[[bytes], object], der: bytes) -> None:
    """Every flip raises EvidenceError, since all bits are signed or say how to read what is."""
    read(der)
    for changed in flips(der):
        with pytest.raises(EvidenceError):
            read(changed)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_read_ocsp_refuses_every_flipped_bit(algorithm: Algorithm) -> None:
    made = branch(algorithm)
    leaf, issuer = made.contract().certificate, made.sub2
    responder = issuer.issue("OCSP", OCSP_RESPONDER, now=AT)
    for der in (
        answer(leaf, issuer),
        answer(leaf, issuer, responder=responder),
        answer(leaf, issuer, revoked_at=AT),
    ):
        refused(lambda changed: read_ocsp(changed, leaf, issuer.certificate, AT, URL), der)
        for changed in flips(der):
            assert isinstance(is_ocsp_response(changed), bool)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_read_crl_refuses_every_flipped_bit(algorithm: Algorithm) -> None:
    made = branch(algorithm)
    leaf, issuer = made.contract().certificate, made.sub2
    place = [x509.UniformResourceIdentifier(URL), x509.DirectoryName(issuer.certificate.x509.subject)]
    point = x509.IssuingDistributionPoint(place, None, False, False, None, False, False)
    key = x509.AuthorityKeyIdentifier(issuer.certificate.key_identifier, None, None)
    for der in (crl(issuer, leaf), crl(issuer, leaf, extra=((point, True), (key, False)))):
        refused(lambda changed: read_crl(changed, issuer.certificate, AT, url=URL), der)


def test_evidence_with_times_beyond_year_9999_is_unreadable() -> None:
    """No hours can be added to it: the first one has to be answered like the others."""
    made = branch()
    leaf, issuer = made.contract().certificate, made.sub2
    der = answer(leaf, issuer, this_update=END_OF_TIME, next_update=None)
    with pytest.raises(EvidenceError):
        read_ocsp(der, leaf, issuer.certificate, AT, URL)
    der = answer(leaf, issuer, next_update=END_OF_TIME)
    assert read_ocsp(der, leaf, issuer.certificate, AT, URL).next_update == END_OF_TIME
    with pytest.raises(EvidenceError):
        read_ocsp(der, leaf, issuer.certificate, END_OF_TIME.replace(second=59), URL)
    with pytest.raises(EvidenceError):
        read_crl(crl(issuer, this_update=END_OF_TIME, next_update=END_OF_TIME), issuer.certificate, AT)
