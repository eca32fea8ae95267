"""RevocationCache: CA evidence is cached for a second; leaves and local writes are not."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ccp.server.storage.queries import revocation as queries
from ccp.server.storage.queries.revocation import RevocationCache
from ccp.x509.revocation_evidence import CertificateRef, Evidence, RevocationList, RevocationStatus
from ccp.x509.revocation_policy import RevocationPolicy, RevocationState
from tests.server.storage.conftest import url
from tests.server.storage.made import read, write
from tests.server.trust.revocation.made import AT, HOUR

__all__ = ["url"]
URL = "http://crl.example/sub.crl"
LEAF, CA = CertificateRef("sub ca", 1, ()), CertificateRef("root", 2, ())
LISTED = CertificateRef("root", 3, (URL,))


def evidence_of(key: CertificateRef, status: RevocationStatus = RevocationStatus.GOOD) -> Evidence:
    return Evidence(
        key.issuer, key.serial, status, AT, AT + HOUR, AT if status is RevocationStatus.REVOKED else None, "OCSP"
    )


class Watch:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def recent(watch: Watch) -> RevocationCache:
    return RevocationCache(watch)


def found(url: str, recent: RevocationCache, *shared: CertificateRef) -> RevocationState:
    return read(url, queries.load_cached((LEAF,), shared, RevocationPolicy(), recent))


def test_revocation_cache_holds_ca_evidence_for_a_second(url: str, recent: RevocationCache, watch: Watch) -> None:
    write(url, queries.store_evidence(evidence_of(LEAF)), queries.store_evidence(evidence_of(CA)))
    assert found(url, recent, CA).evidence == {("sub ca", 1): evidence_of(LEAF), ("root", 2): evidence_of(CA)}
    revoked = [evidence_of(key, RevocationStatus.REVOKED) for key in (LEAF, CA)]
    write(url, *(queries.store_evidence(each) for each in revoked))
    watch.now += 0.9
    known = found(url, recent, CA)
    assert known.find_revoked(LEAF) == revoked[0]
    assert known.find_revoked(CA) is None
    watch.now += 0.2
    assert found(url, recent, CA).find_revoked(CA) == revoked[1]


def test_revocation_cache_holds_missing_evidence_too(url: str, recent: RevocationCache, watch: Watch) -> None:
    assert found(url, recent, CA).evidence == {}
    write(url, queries.store_evidence(evidence_of(CA)))
    assert found(url, recent, CA).evidence == {}
    watch.now += 1.0
    assert found(url, recent, CA).evidence == {("root", 2): evidence_of(CA)}


def test_revocation_cache_invalidates_on_local_writes(url: str, recent: RevocationCache) -> None:
    found(url, recent, CA)
    write(url, queries.store_evidence(evidence_of(CA, RevocationStatus.REVOKED)))
    recent.invalidate()
    assert found(url, recent, CA).find_revoked(CA) is not None


def test_revocation_cache_holds_crls_for_a_second(url: str, recent: RevocationCache, watch: Watch) -> None:
    assert found(url, recent, LISTED).find_good(LISTED, RevocationPolicy(), AT) is None
    load = queries.store_crl(
        RevocationList("root", 1, AT, AT + HOUR, {}), url=URL, issuer_certificate=b"", etag=None, last_modified=None,
        now=AT, refresh_at=AT + timedelta(minutes=30),
    )  # fmt: skip
    write(url, load)
    assert found(url, recent, LISTED).find_good(LISTED, RevocationPolicy(), AT) is None
    watch.now += 1.0
    for _ in range(2):
        assert found(url, recent, LISTED).find_good(LISTED, RevocationPolicy(), AT) is not None


def test_revocation_cache_ignores_reads_before_an_invalidation(url: str, recent: RevocationCache) -> None:
    """Its answer may be on its way while another worker's news is written here."""
    steps = queries.load_cached((LEAF,), (CA,), RevocationPolicy(), recent)
    next(steps)
    recent.invalidate()
    with pytest.raises(StopIteration):
        steps.send([])
    assert recent.evidence == {}


def test_revocation_cache_queries_only_the_leaf_again(recent: RevocationCache) -> None:
    for expected in ({("sub ca", "1"), ("root", "2")}, {("sub ca", "1")}):
        steps = queries.load_cached((LEAF,), (CA,), RevocationPolicy(), recent)
        _, parameters = next(steps)
        assert set(zip(parameters[::2], parameters[1::2], strict=True)) == expected
        with pytest.raises(StopIteration):
            steps.send([])
