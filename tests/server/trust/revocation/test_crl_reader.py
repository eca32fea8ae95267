"""CRLReader: long CRLs are parsed in a process, with the same results."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from ccp.server.trust.crl_reader import SHORT_CRL, CRLReader
from ccp.testing.revocation import sign_crl
from ccp.x509.crl_ocsp import read_crl
from ccp.x509.revocation_evidence import EvidenceError
from tests.server.trust.revocation.made import AT, DAY, branch

LATER = AT + timedelta(hours=1)


@pytest.mark.parametrize("count", [1, 5_000])
def test_crl_reader_reads_short_and_long_crls_alike(count: int) -> None:
    made = branch()
    serials = [1, 127, 128, 2**159 - 1, *range(10**20, 10**20 + count)]
    revoked = {serial: AT - timedelta(minutes=place) for place, serial in enumerate(serials)}
    crl = sign_crl(made.sub2, revoked, this_update=AT, next_update=AT + DAY, number=2**100)
    assert (len(crl) > SHORT_CRL) is (count > 1)
    found = asyncio.run(CRLReader().read(crl, made.sub2.certificate, LATER, 2**99))
    assert found == read_crl(crl, made.sub2.certificate, LATER, 2**99)
    assert found.revoked == revoked


def test_crl_reader_reports_the_same_errors_for_long_crls() -> None:
    made, other = branch(), branch()
    revoked = dict.fromkeys(range(1, 5_000), AT)
    crl = sign_crl(made.sub2, revoked, this_update=AT, next_update=AT + DAY, number=6)
    forged = sign_crl(other.sub2, revoked, this_update=AT, next_update=AT + DAY)
    for wrong, last, words in (
        (crl, 7, "the number 6"),
        (forged, None, "not signed by"),
        (crl[:-1], None, "cannot be read"),
    ):
        with pytest.raises(EvidenceError, match=words):
            asyncio.run(CRLReader().read(wrong, made.sub2.certificate, LATER, last))
