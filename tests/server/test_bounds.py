"""Caches bound the length of their entries, so that one caller cannot fill memory with few of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from cryptography import x509

from ccp.server.external.resolver import ResolutionError, Resolver
from ccp.server.http.middleware import tracing
from ccp.testing.pki import PKI, SUB_CA2, StatusURLs, subject_name
from ccp.x509 import canonical_names, certificates, der, names
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors
from tests.server.trust.revocation.made import AT as AT_REVOCATION
from tests.server.trust.revocation.made import Bench, branch, run
from tests.world import Pool
from tests.x509.made import AT

MANY_NAMES = x509.SubjectAlternativeName([x509.DNSName("a")] * 200)


def test_bounds_keep_long_names_compared_and_not_remembered() -> None:
    canonical_names._KNOWN.clear()
    encoded = subject_name("Example").public_bytes()
    short = encoded[der.read_element(encoded, 0).start :]
    name = b"".join(short for _ in range(40))
    assert len(name) > 1024
    assert canonical_names.canonical_name(name) == canonical_names.canonical_name(short) * 40
    assert name not in canonical_names._KNOWN
    assert short in canonical_names._KNOWN


def test_bounds_keep_long_extensions_and_certificates_read_and_not_remembered() -> None:
    pki = PKI.generate(AT)
    usual = pki.oem_sub1.issue("CA", SUB_CA2, now=AT).certificate
    long = pki.oem_sub1.issue("CA", replace(SUB_CA2, extra=((MANY_NAMES, False),)), now=AT).certificate
    assert len(long.der) > 1024
    anchors = TrustAnchors.build([])
    certificates._KNOWN_EXTENSIONS.clear()
    for each in (usual, long):
        assert anchors.load_intermediate(each.der) == each
        assert Certificate.load(each.der).listed_extensions
    assert list(anchors._intermediate_cache) == [usual.der]
    assert len(certificates._KNOWN_EXTENSIONS) == 1


def test_name_of_any_length_is_remembered_by_its_beginning() -> None:
    names._folded_text.cache_clear()
    for number in range(10):
        assert names.comparable_attributes("CN=Example, O=" + "x" * 2000 + str(number))
    assert names._folded_text.cache_info().currsize == 1


def test_bounds_keep_long_paths_read_and_not_remembered(pool: Pool) -> None:
    tracing._read_short_path.cache_clear()
    pool.emsp.get("/contractData/emaid/DEEXA000000001")
    before = tracing._read_short_path.cache_info().currsize
    assert before >= 1
    for number in range(20):
        answer = pool.emsp.get(f"/contractData/emaid/DEEXA{number:0200}")
        assert answer.status_code == 400
    assert tracing._read_short_path.cache_info().currsize == before


def test_caller_has_the_pool_ask_about_so_many_certificates_at_a_time() -> None:
    made = branch(addresses={"sub2": StatusURLs(ocsp="http://127.0.0.1:9/")})
    pairs = [(made.contract().certificate, made.sub2.certificate) for _ in range(5)]

    async def test(bench: Bench) -> None:
        failures = await bench.service.fetch_missing(pairs, AT_REVOCATION, caller="one", max_asked=3)
        too_many = [str(each) for each in failures.values() if "too many certificates at a time" in str(each)]
        assert len(failures) == 5  # Nothing answers at that address.
        assert len(too_many) == 2
        assert not bench.service._fetcher._callers
        assert not bench.service._fetcher._flights
        failures = await bench.service.fetch_missing(pairs[:3], AT_REVOCATION, caller="one", max_asked=3)
        assert not [each for each in failures.values() if "too many" in str(each)]

    run(test)


def test_failure_that_is_raised_again_and_again_does_not_grow() -> None:
    def lookup(host: str) -> list[str]:
        raise OSError("no")

    async def test() -> list[int]:
        resolver, lengths = Resolver(lookup), []
        for _ in range(5):
            with pytest.raises(ResolutionError) as raised:
                await resolver.resolve("pki.example")
            lengths.append(len(raised.traceback))
        return lengths

    lengths = asyncio.run(test())
    assert len(set(lengths[1:])) == 1
