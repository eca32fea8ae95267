"""Revocation policy over stored evidence, and which evidence replaces which in the store."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable
from datetime import datetime, timedelta

import pytest

from ccp.errors import CCPError, RevokedError, Unavailable, VerificationError
from ccp.server.storage.queries import revocation as queries
from ccp.server.storage.queries.certificate_refs import dump_refs, load_refs
from ccp.testing.pki import StatusURLs
from ccp.x509.revocation_evidence import (
    CertificateRef,
    Evidence,
    LoadedCRL,
    RevocationList,
    RevocationStatus,
    certificate_ref,
    certificate_refs,
)
from ccp.x509.revocation_policy import (
    DeferredRevocation,
    HardFailRevocation,
    NoRevocationCheck,
    RevocationPolicy,
    RevocationState,
    check_refs,
)
from tests.databases import knows_sqlite
from tests.server.trust.revocation.made import AT, DAY, HOUR, Bench, Branch, branch, run

CRL = "http://crl.example/2.crl"


@pytest.fixture(scope="module")
def made() -> Branch:
    """Contracts name a responder and a CRL, Sub-CA 2 a responder, Sub-CA 1 nothing."""
    return branch(addresses={"sub1": StatusURLs(ocsp="http://1"), "sub2": StatusURLs("http://2", CRL)})


def evidence(
    key: CertificateRef,
    status: RevocationStatus = RevocationStatus.GOOD,
    *,
    since: datetime = AT,
    until: datetime = AT + HOUR,
) -> Evidence:
    when = AT - DAY if status is RevocationStatus.REVOKED else None
    return Evidence(key.issuer, key.serial, status, since, until, when, "OCSP test")


def known(*found: Evidence, crls: Iterable[LoadedCRL] = ()) -> RevocationState:
    return RevocationState({(one.issuer, one.serial): one for one in found}, {one.issuer: [one] for one in crls})


def outcome(judge: HardFailRevocation, chain: object, at: datetime = AT) -> CCPError | str:
    try:
        return judge.check(chain, at)  # type: ignore[arg-type]
    except CCPError as exc:
        return exc


def test_policy_hard_fail_checks_each_certificate_of_a_chain(made: Branch) -> None:
    chain = made.chain(made.contract().certificate)
    rules = RevocationPolicy()
    leaf, sub2, sub1 = certificate_refs((chain,))
    assert (leaf.crls, sub2.crls, sub1.crls) == ((CRL,), (), None)
    good = [evidence(leaf), evidence(sub2)]
    judge = HardFailRevocation(known(*good), rules)
    message = outcome(judge, chain)
    assert isinstance(message, str)
    assert message.count("is not revoked (OCSP test, 0 minutes old)") == 2
    assert judge.warnings == [
        'Certificate "eMSP Sub1 CA SIM" names no OCSP or CRL address; its revocation is not known.'
    ]
    # Whichever is revoked, the chain is, also one that needs no evidence.
    for key in (leaf, sub2, sub1):
        judged = outcome(HardFailRevocation(known(*good, evidence(key, RevocationStatus.REVOKED)), rules), chain)
        assert isinstance(judged, RevokedError)
    # Whichever is missing is named, with its issuer.
    for place, key in ((0, leaf), (1, sub2)):
        for replaced in ((), (evidence(key, RevocationStatus.UNKNOWN),), (evidence(key, until=AT - HOUR),)):
            judge = HardFailRevocation(known(*(one for one in good if one.serial != key.serial), *replaced), rules)
            judged = outcome(judge, chain)
            assert isinstance(judged, Unavailable)
            assert judge.missing == [(chain.certificates[place], chain.certificates[place + 1])]
            assert chain.certificates[place].display_name in str(judged)
    # Revoked does not run out.
    old = evidence(leaf, RevocationStatus.REVOKED, since=AT - 9 * DAY, until=AT - 8 * DAY)
    assert isinstance(outcome(HardFailRevocation(known(old), rules), chain), RevokedError)


def test_crl_that_is_fresh_is_good_evidence_for_unlisted_certificates(made: Branch) -> None:
    chain = made.chain(made.contract().certificate)
    rules = RevocationPolicy()
    leaf, sub2, _ = certificate_refs((chain,))

    def with_crl(url: str, until: datetime, issuer: str = leaf.issuer) -> CCPError | str:
        return outcome(
            HardFailRevocation(known(evidence(sub2), crls=[LoadedCRL(issuer, url, 1, AT - HOUR, until)]), rules), chain
        )

    assert f"(CRL {CRL}, 60 minutes old)" in str(with_crl(CRL, AT))
    assert isinstance(with_crl(CRL, AT - timedelta(seconds=1)), Unavailable)
    # A list from elsewhere may be for other certificates of the issuer, one of another issuer is.
    assert isinstance(with_crl("http://crl.example/other.crl", AT + HOUR), Unavailable)
    assert isinstance(with_crl(CRL, AT + HOUR, issuer=sub2.issuer), Unavailable)


def test_configured_crl_makes_evidence_required(made: Branch) -> None:
    chain = made.chain(made.contract().certificate)
    root = made.root.certificate
    for name in (root.subject_cn, root.fingerprint):
        rules = RevocationPolicy(crl_urls={name: "http://10.0.0.1/arl"})
        assert rules.crls_for(certificate_ref(made.sub1.certificate, root)) == ("http://10.0.0.1/arl",)
        judge = HardFailRevocation(known(), rules)
        assert isinstance(outcome(judge, chain), Unavailable)
        assert (made.sub1.certificate, root) in judge.missing


def test_policy_require_refuses_certificates_without_status_urls(made: Branch) -> None:
    chain = made.chain(made.contract().certificate)
    refused = outcome(HardFailRevocation(known(), RevocationPolicy(required=True)), chain)
    assert type(refused) is VerificationError
    assert "Sub1" in str(refused)


def test_check_refs_equals_the_chain_check_with_grace(made: Branch) -> None:
    rules = RevocationPolicy(grace=HOUR)
    needs, warned = CertificateRef("a" * 64, 1, ()), CertificateRef("b" * 64, 2, None)
    both = (needs, warned)
    check_refs(both, known(evidence(needs)), rules, AT + 2 * HOUR)
    with pytest.raises(Unavailable):
        check_refs(both, known(evidence(needs)), rules, AT + 2 * HOUR + timedelta(seconds=1))
    with pytest.raises(Unavailable):
        check_refs(both, known(), rules, AT)
    for key in both:
        with pytest.raises(RevokedError):
            check_refs(both, known(evidence(needs), evidence(key, RevocationStatus.REVOKED)), rules, AT)
    # The operator's policy now is what counts, not the one at the time of publishing.
    check_refs(both, known(), RevocationPolicy(enabled=False), AT)
    with pytest.raises(Unavailable):
        check_refs(both, known(evidence(needs)), RevocationPolicy(required=True), AT)
    check_refs((), known(), rules, AT)


def test_dump_refs_and_load_refs_round_trip() -> None:
    keys = (
        CertificateRef("a" * 64, 2**159 - 1, ("http://x", "http://y"), ("f" * 64, 'A "CA"')),
        CertificateRef("b" * 64, 1, ()),
        CertificateRef("c" * 64, 2, None),
    )
    assert load_refs(dump_refs((*keys, *keys))) == keys


def test_load_refs_reads_rows_without_issuer_names() -> None:
    assert load_refs('[["aa","1f",["http://x"]],["bb","2",null]]') == (
        CertificateRef("aa", 31, ("http://x",)),
        CertificateRef("bb", 2, None),
    )


@pytest.mark.parametrize("crls", [None, ()])
def test_configured_crl_covers_earlier_publications(crls: tuple[str, ...] | None) -> None:
    url, names = "http://10.0.0.1/crl", ("f" * 64, "Sub2")
    key = CertificateRef("a" * 64, 1, crls, names)
    for name in names:
        rules = RevocationPolicy(crl_urls={name: url})

        def judged(*found: Evidence, until: datetime | None = None, rules: RevocationPolicy = rules) -> bool:
            lists = [] if until is None else [LoadedCRL(key.issuer, url, 1, AT - HOUR, until)]
            try:
                check_refs((key,), known(*found, crls=lists), rules, AT)
            except Unavailable:
                return False
            return True

        # Until its first list is there, things stand as they did.
        assert judged() is (crls is None)
        assert judged(evidence(key))
        # Then the list answers, and what it does not answer any more is not known.
        assert judged(until=AT)
        assert not judged(until=AT - HOUR)
        assert judged(evidence(key), until=AT - HOUR)
    assert not RevocationPolicy(crl_urls={"Sub1": url}).crls_for(key)


def test_policy_without_or_with_a_deferred_check_reports_itself(made: Branch) -> None:
    chain = made.chain(made.contract().certificate)
    assert "not checked" in NoRevocationCheck().check(chain, AT)
    later = DeferredRevocation()
    later.check(chain, AT)
    assert later.chains == [chain]


# --- What the store lets replace what ---


def test_store_evidence_keeps_the_newest_and_revoked() -> None:
    key = CertificateRef("a" * 64, 0x1F, ())
    first = evidence(key, since=AT)
    steps = [
        (first, True),
        (evidence(key, since=AT - HOUR), False),
        (evidence(key, RevocationStatus.UNKNOWN, since=AT - HOUR), False),
        (evidence(key, since=AT), True),
        (evidence(key, RevocationStatus.UNKNOWN, since=AT + HOUR), True),
        (evidence(key, since=AT + 2 * HOUR), True),
        # A responder that reports revocation may be behind in other respects.
        (evidence(key, RevocationStatus.REVOKED, since=AT - DAY), True),
        (evidence(key, since=AT + DAY), False),
        (evidence(key, RevocationStatus.UNKNOWN, since=AT + DAY), False),
        (evidence(key, RevocationStatus.REVOKED, since=AT + DAY), False),
    ]

    async def test(bench: Bench) -> None:
        kept = None
        for received, taken in steps:
            assert await bench.store.write(queries.store_evidence(received)) is taken, received
            kept = received if taken else kept
            assert (await bench.store.read(queries.load([key], RevocationPolicy()))).evidence == {
                (key.issuer, key.serial): kept
            }

    run(test)


def test_load_finds_the_requested_certificates_only() -> None:
    keys = [CertificateRef(f"{number % 3:064x}", number, ()) for number in range(1, 40)]

    async def test(bench: Bench) -> None:
        for key in keys:
            await bench.store.write(queries.store_evidence(evidence(key)))
        for count in (0, 1, 5, 6, 7, 12, 39):
            found = (await bench.store.read(queries.load(iter(keys[:count]), RevocationPolicy()))).evidence
            assert set(found) == {(key.issuer, key.serial) for key in keys[:count]}

    run(test)


@knows_sqlite
def test_store_crl_is_atomic_and_never_older(made: Branch) -> None:
    issuer = made.sub2.certificate
    name = issuer.issuer_key_id

    def load(number: int | None, serials: Iterable[int], since: datetime = AT) -> object:
        read = RevocationList(name, number, since, since + DAY, dict.fromkeys(serials, AT - DAY))
        options = {"etag": None, "last_modified": None, "now": AT, "refresh_at": AT + HOUR}
        return queries.store_crl(read, url=CRL, issuer_certificate=issuer.der, **options)  # type: ignore[arg-type]

    async def test(bench: Bench) -> None:
        async def write(*arguments: object) -> object:
            return await bench.store.write(load(*arguments))  # type: ignore[arg-type]

        key = CertificateRef(name, 5, (CRL,))
        await bench.store.write(queries.store_evidence(evidence(key, since=AT + HOUR)))
        assert await write(3, range(1, 1000))
        found = await bench.store.read(queries.load([key, key._replace(serial=1000)], RevocationPolicy()))
        # A certificate on the CRL is revoked, whatever an OCSP response reports and however recent it is.
        assert {serial: one.status for (_, serial), one in found.evidence.items()} == {5: RevocationStatus.REVOKED}
        assert [crl.number for crl in found.crls[name]] == [3]
        assert not await write(2, [2000])
        assert not await write(None, [2000])
        assert not await write(4, [2000], AT - HOUR)
        assert not (await bench.store.read(queries.load([key._replace(serial=2000)], RevocationPolicy()))).evidence
        # What fails in the middle leaves nothing behind.
        read = RevocationList(name, 5, AT, AT + DAY, dict.fromkeys(range(3000, 4000), AT))
        options = {"etag": None, "last_modified": None, "now": AT, "refresh_at": AT + HOUR}
        with pytest.raises(sqlite3.IntegrityError):  # The list's own row comes last, and here it is not complete.
            await bench.store.write(
                queries.store_crl(read, url=CRL, issuer_certificate=None, **options)  # type: ignore[arg-type]
            )
        assert not (await bench.store.read(queries.load([key._replace(serial=3000)], RevocationPolicy()))).evidence
        assert await write(3, [4000])

    run(test)


@knows_sqlite
def test_load_uses_the_index() -> None:
    """SQLite reads the whole table for some ways of asking, which shows only when it is large."""
    keys = [CertificateRef("a" * 64, number, ("x",)) for number in range(7)]

    async def test(bench: Bench) -> None:
        plans = []

        def explained():  # type: ignore[no-untyped-def]
            for query in (
                queries.load(keys, RevocationPolicy()),
                queries.due_crls(AT, AT, 5),
                queries.due_certificates(AT, AT, 5),
                queries.unwatch(("a", 1)),
            ):
                statement, parameters = next(query)
                rows = yield f"explain query plan {statement}", parameters
                plans.append(" ".join(str(row[-1]) for row in rows))

        await bench.store.read(explained())
        assert all("SEARCH" in plan and "SCAN" not in plan for plan in plans), plans

    run(test)


def test_due_certificates_are_claimed(made: Branch) -> None:
    leaf = made.contract().certificate
    key = made.sub2.certificate.issuer_key_id, leaf.serial_number

    async def test(bench: Bench) -> None:
        watch = queries.watch(key, leaf.der, made.sub2.certificate.der, leaf.not_after, AT)
        await bench.store.write(watch)
        retry = AT + timedelta(minutes=2)
        both = await asyncio.gather(*(bench.store.write(queries.due_certificates(AT, retry, 10)) for _ in range(2)))
        assert sorted(len(one) for one in both) == [0, 1]
        assert len(await bench.store.write(queries.due_certificates(retry, retry, 10))) == 1
        await bench.store.write(queries.unwatch(key))
        assert not await bench.store.write(queries.due_certificates(AT + DAY, AT + DAY, 10))

    run(test)
