"""RevocationService with a real database and real HTTP: publication, delivery, refresh."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography.x509 import ocsp

from ccp.errors import RevokedError, Unavailable, VerificationError
from ccp.server.storage.queries import revocation as queries
from ccp.server.storage.queries.certificate_refs import dump_refs, load_refs
from ccp.server.trust import revocation
from ccp.testing.pki import OCSP_RESPONDER, PKI, Algorithm, StatusURLs
from ccp.x509.profiles import Profile, Usage
from ccp.x509.revocation_evidence import CertificateRef, certificate_refs
from ccp.x509.revocation_policy import check_refs
from tests.scripted_server import ENDLESS, Received, Reply, Scripted, dripped, unused_port
from tests.server.trust.revocation.made import (
    ALGORITHMS,
    AT,
    DAY,
    HOUR,
    LOOPBACK,
    Bench,
    Branch,
    answer,
    beside,
    branch,
    crl,
    run,
    serve_crl,
)
from tests.server.trust.revocation.servers import openssl_responder

# --- Against OpenSSL's responder ---


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("delegated", [False, True])
def test_ensure_good_with_openssl_good_revoked_unknown(algorithm: Algorithm, delegated: bool, tmp_path: Path) -> None:
    """A real responder, once signing with the issuer's key and once with one that the issuer delegated."""
    port = unused_port()
    made = branch(algorithm, {"sub2": StatusURLs(ocsp=f"http://127.0.0.1:{port}")})
    good, revoked, unknown = (made.contract().certificate for _ in range(3))
    responder = made.sub2.issue("OCSP", OCSP_RESPONDER, now=AT) if delegated else None
    statuses = {good.serial_number: None, revoked.serial_number: AT - DAY}

    async def test(bench: Bench) -> None:
        cleared = await bench.service.ensure_good([made.chain(good)], AT)
        assert "OCSP http://127.0.0.1" in cleared.sentences[0]
        assert len(cleared.warnings) == 2  # The sub-CAs name nothing here.
        with pytest.raises(RevokedError, match=f"{revoked.subject_cn}.* was revoked at {AT - DAY:%Y-%m-%d}"):
            await bench.service.ensure_good([made.chain(revoked)], AT)
        with pytest.raises(Unavailable, match="does not know it"):
            await bench.service.ensure_good([made.chain(unknown)], AT)

    with openssl_responder(tmp_path, made.sub2, statuses, responder=responder, port=port):
        run(test, ocsp_sha256=("eMSP Sub2 CA SIM",) if delegated else ())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_ensure_good_refuses_a_revoked_sub_ca(algorithm: Algorithm, tmp_path: Path) -> None:
    port = unused_port()
    made = branch(algorithm, {"sub1": StatusURLs(ocsp=f"http://127.0.0.1:{port}")})

    async def test(bench: Bench) -> None:
        with pytest.raises(RevokedError, match="eMSP Sub2 CA SIM"):
            await bench.service.ensure_good([made.chain(made.contract().certificate)], AT)

    with openssl_responder(tmp_path, made.sub1, {made.sub2.certificate.serial_number: AT - HOUR}, port=port):
        run(test)


# --- Publishing ---


def test_ensure_good_reuses_fresh_evidence(server: Scripted, made: Branch) -> None:
    leaf = made.contract().certificate
    server.on("/sub2", answer(leaf, made.sub2))

    async def test(bench: Bench) -> None:
        first = await bench.service.ensure_good([made.chain(leaf)], AT)
        assert (len(server.received), first.warnings) == (3, ())
        assert load_refs(dump_refs(first.keys)) == first.keys
        assert await bench.service.ensure_good([made.chain(leaf)], AT) == first
        assert len(server.received) == 3

    run(test)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(body=b"<html>"), "cannot be read"),
        (Reply(status=404), "HTTP status 404"),
        (Reply(status=302, headers={"Location": "http://127.0.0.1/elsewhere"}), "HTTP status 302"),
        (Reply(body=bytes(131_073)), "more than 131072 bytes"),
        (ENDLESS, "more than 131072 bytes"),
        (dripped(b"x" * 100, 0.3), "did not answer within 2 s"),
        (Reply(delay=30), "did not answer within 2 s"),
    ],
    ids=["html", "404", "redirect", "oversized", "endless", "drip", "hanging"],
)
def test_ensure_good_is_unavailable_without_evidence(server: Scripted, made: Branch, reply: Reply, words: str) -> None:
    leaf = made.contract().certificate
    server.on("/sub2", reply)

    async def test(bench: Bench) -> None:
        began = time.monotonic()
        with pytest.raises(Unavailable, match=words) as raised:
            await bench.service.ensure_good([made.chain(leaf)], AT)
        assert leaf.subject_cn in str(raised.value)
        assert time.monotonic() - began < revocation.PUBLICATION_TIMEOUT + 1
        # As soon as the responder answers, so does the pool.
        server.on("/sub2", answer(leaf, made.sub2))
        await bench.service.ensure_good([made.chain(leaf)], AT)

    run(test)


def test_ensure_good_reports_revoked_before_missing_evidence(server: Scripted, made: Branch) -> None:
    serve_crl(server, "/sub1.crl", crl(made.sub1, made.sub2.certificate))
    server.on("/sub2", Reply(status=500))

    async def test(bench: Bench) -> None:
        chain = made.chain(made.contract().certificate)
        with pytest.raises(RevokedError):
            await bench.service.ensure_good([chain], AT)
        asked = len(server.received)
        with pytest.raises(RevokedError):
            await bench.service.ensure_good([chain], AT)
        assert len(server.received) == asked

    run(test)


def test_revocation_fetch_is_shared_by_concurrent_callers(server: Scripted, made: Branch) -> None:
    leaf = made.contract().certificate
    der = answer(leaf, made.sub2)
    server.on("/sub2", Reply(body=der, delay=0.2))

    async def test(bench: Bench) -> None:
        chain = made.chain(leaf)
        await asyncio.gather(*(bench.service.ensure_good([chain], AT) for _ in range(50)))
        assert len(server.received) == 3

    run(test)


def test_revocation_fetch_goes_on_for_others_when_a_caller_is_cancelled(server: Scripted, made: Branch) -> None:
    leaf = made.contract().certificate
    server.on("/sub2", Reply(body=answer(leaf, made.sub2), delay=1.0))

    async def test(bench: Bench) -> None:
        impatient = asyncio.create_task(bench.service.ensure_good([made.chain(leaf)], AT))
        patient = asyncio.create_task(bench.service.ensure_good([made.chain(leaf)], AT))
        while not server.count("/sub2"):  # noqa: ASYNC110  the server is a thread
            await asyncio.sleep(0.01)
        impatient.cancel()
        assert (await patient).keys
        assert server.count("/sub2") == 1

    run(test)


def test_host_that_fails_opens_its_circuit(server: Scripted) -> None:
    made = branch(addresses={"sub2": StatusURLs(ocsp=server.url + "/2")})
    server.on("/2", Reply(status=503))

    async def test(bench: Bench) -> None:
        for _ in range(5):
            with pytest.raises(Unavailable):
                await bench.service.ensure_good([made.chain(made.contract().certificate)], AT)
        assert len(server.received) == 3
        with pytest.raises(Unavailable, match="not called for a while") as caught:
            await bench.service.ensure_good([made.chain(made.contract().certificate)], AT)
        assert caught.value.retry_after is not None
        assert 25 < caught.value.retry_after <= 30

    run(test)


def test_requests_to_one_host_are_rate_limited(server: Scripted) -> None:
    made = branch(addresses={"sub2": StatusURLs(ocsp=server.url + "/2")})
    server.on("/2", Reply(body=b"x"))

    async def test(bench: Bench) -> None:
        pairs = [(made.contract().certificate, made.sub2.certificate) for _ in range(35)]
        began = time.monotonic()
        await bench.service.fetch_missing(pairs, AT)
        # Twenty at once, the others at twenty a second.
        assert len(server.received) == 35
        assert time.monotonic() - began > 0.6

    run(test)


# --- The guard ---


def test_loopback_urls_in_certificates_are_not_called(server: Scripted, made: Branch) -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await bench.service.ensure_good([made.chain(made.contract().certificate)], AT)
        assert not server.received

    run(test, egress_allow_networks=())


def test_names_that_resolve_to_loopback_are_not_called(server: Scripted) -> None:
    port = server.url.rpartition(":")[2]
    made = branch(addresses={"sub2": StatusURLs(f"http://localhost:{port}/2", f"http://localhost:{port}/2.crl")})

    async def test(bench: Bench) -> None:
        with pytest.raises(Unavailable, match="localhost cannot be reached"):
            await bench.service.ensure_good([made.chain(made.contract().certificate)], AT)
        assert not server.received

    run(test, egress_allow_networks=())


def test_revocation_fetch_follows_no_redirect_of_a_responder(server: Scripted, made: Branch) -> None:
    leaf = made.contract().certificate
    server.on("/real", answer(leaf, made.sub2))
    server.on("/sub2", Reply(status=307, headers={"Location": server.url + "/real"}))

    async def test(bench: Bench) -> None:
        with pytest.raises(Unavailable, match="HTTP status 307"):
            await bench.service.ensure_good([made.chain(leaf)], AT)
        assert server.count("/real") == 0

    run(test)


# --- Policy ---


def test_revocation_policy_decides_on_certificates_without_status_urls() -> None:
    made = branch()
    chain = made.chain(made.contract().certificate)

    async def when_named(bench: Bench) -> None:
        cleared = await bench.service.ensure_good([chain], AT)
        assert len(cleared.warnings) == 3
        assert all(key.crls is None for key in cleared.keys)
        check_refs(
            cleared.keys,
            await bench.store.read(queries.load(cleared.keys, bench.service.rules)),
            bench.service.rules,
            AT,
        )

    async def require(bench: Bench) -> None:
        with pytest.raises(VerificationError, match="names no OCSP or CRL address"):
            await bench.service.ensure_good([chain], AT)

    async def off(bench: Bench) -> None:
        cleared = await bench.service.ensure_good([chain], AT)
        assert cleared.keys == certificate_refs((chain,))
        assert (await bench.service.refresh_due(AT)).refreshed == 0

    run(when_named)
    run(require, revocation="require")
    run(off, revocation="off")


def test_revocation_policy_off_registers_certificates_for_later_checks(server: Scripted, made: Branch) -> None:
    """The sweep asks for it then; until it has, its standing is not known."""
    good, revoked = made.contract().certificate, made.contract().certificate

    def answering(request: Received) -> Reply:
        if ocsp.load_der_ocsp_request(request.body).serial_number == good.serial_number:
            return Reply(body=answer(good, made.sub2))
        return Reply(body=answer(revoked, made.sub2, revoked_at=AT - DAY))

    async def test(bench: Bench) -> None:
        keys = [(await bench.service.ensure_good([made.chain(leaf)], AT)).keys for leaf in (good, revoked)]
        assert not (await bench.service.refresh_due(AT)).refreshed
        assert not server.received
        server.on("/sub2", answering)
        async with beside(bench, egress_allow_networks=LOOPBACK) as service:
            for each in keys:
                with pytest.raises(Unavailable):
                    check_refs(each, await bench.store.read(queries.load(each, service.rules)), service.rules, AT)
            assert (await service.refresh_due(AT)).failed == 0
            check_refs(keys[0], await bench.store.read(queries.load(keys[0], service.rules)), service.rules, AT)
            with pytest.raises(RevokedError):
                check_refs(keys[1], await bench.store.read(queries.load(keys[1], service.rules)), service.rules, AT)

    run(test, revocation="off")


def test_crl_configured_later_covers_earlier_publications(server: Scripted) -> None:
    made = branch()
    good, revoked, next_one = (made.contract().certificate for _ in range(3))

    async def test(bench: Bench) -> None:
        keys = [(await bench.service.ensure_good([made.chain(leaf)], AT)).keys for leaf in (good, revoked)]
        url = serve_crl(server, "/later.crl", crl(made.sub2, revoked))
        async with beside(bench, crl_urls={made.sub2.certificate.subject_cn: url}) as service:

            async def judge(each: tuple[CertificateRef, ...], at: datetime = AT) -> None:
                check_refs(each, await bench.store.read(queries.load(each, service.rules)), service.rules, at)

            await judge(keys[0])
            await judge(keys[1])
            await service.ensure_good([made.chain(next_one)], AT)
            await judge(keys[0])
            with pytest.raises(RevokedError):
                await judge(keys[1])
            # From now on the list has to be there.
            with pytest.raises(Unavailable):
                await judge(keys[0], AT + 2 * DAY)

    run(test)


def test_revocation_policy_off_fetches_nothing(server: Scripted, made: Branch) -> None:
    async def test(bench: Bench) -> None:
        await bench.service.ensure_good([made.chain(made.contract().certificate)], AT)
        await bench.service.check_vehicle(made.chain(made.contract().certificate), AT)
        assert not server.received

    run(test, revocation="off")


# --- Delivering ---


def test_delivery_accepts_evidence_until_expiry_plus_grace(server: Scripted, made: Branch) -> None:
    leaf = made.contract().certificate
    server.on("/sub2", answer(leaf, made.sub2))

    async def test(bench: Bench) -> None:
        keys = (await bench.service.ensure_good([made.chain(leaf)], AT)).keys
        found = await bench.store.read(queries.load(keys, bench.service.rules))
        grace = bench.service.rules.grace
        check_refs(keys, found, bench.service.rules, AT + HOUR + grace)
        with pytest.raises(Unavailable, match="not known now"):
            check_refs(keys, found, bench.service.rules, AT + HOUR + grace + timedelta(seconds=1))

    run(test)
    run(test, revocation_grace=7200)


async def _deliveries(bench: Bench, keys: tuple[CertificateRef, ...], seconds: float) -> list[float]:
    """What a delivery does about revocation, again and again. Returns how long it took, in seconds, sorted."""
    took = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        check_refs(keys, await bench.store.read(queries.load(keys, bench.service.rules)), bench.service.rules, AT)
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0.001)
    return sorted(took)


def _assert_quick(took: list[float]) -> None:
    """No request waited for the responder, which takes two seconds; the rest is other load of the machine."""
    assert len(took) > 100
    assert took[len(took) * 95 // 100] < 0.02
    assert took[-1] < 1.0


def test_delivery_is_not_slowed_by_a_killed_responder(tmp_path: Path) -> None:
    """OpenSSL's responder is killed while publishers, the sweep and deliveries are under way."""
    port = unused_port()
    made = branch(addresses={"sub2": StatusURLs(ocsp=f"http://127.0.0.1:{port}")})
    leaf, *others = (made.contract().certificate for _ in range(30))
    statuses = dict.fromkeys(one.serial_number for one in (leaf, *others))

    async def test(bench: Bench) -> None:
        with openssl_responder(tmp_path, made.sub2, statuses, port=port):
            keys = (await bench.service.ensure_good([made.chain(leaf)], AT)).keys
            chains = [made.chain(one) for one in others]
            publishers = [asyncio.create_task(bench.service.ensure_good([chain], AT)) for chain in chains]
            sweeping = asyncio.create_task(bench.service.refresh_due(AT + timedelta(minutes=50)))
            await _deliveries(bench, keys, 0.2)
        took = await _deliveries(bench, keys, 1.0)
        outcomes = await asyncio.gather(*publishers, return_exceptions=True)
        await sweeping
        assert all(isinstance(each, Unavailable | revocation.RevocationCleared) for each in outcomes)
        with pytest.raises(Unavailable):
            await bench.service.ensure_good([made.chain(made.contract().certificate)], AT)
        _assert_quick(took)

    run(test)


def test_delivery_is_not_slowed_by_a_hanging_responder(server: Scripted, made: Branch) -> None:
    leaf = made.contract().certificate
    server.on("/sub2", answer(leaf, made.sub2))

    async def test(bench: Bench) -> None:
        keys = (await bench.service.ensure_good([made.chain(leaf)], AT)).keys
        server.on("/sub2", Reply(delay=30))
        publishers = [
            asyncio.create_task(bench.service.ensure_good([made.chain(made.contract().certificate)], AT))
            for _ in range(10)
        ]
        took = await _deliveries(bench, keys, 1.0)
        outcomes = await asyncio.gather(*publishers, return_exceptions=True)
        assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
        _assert_quick(took)

    run(test)


def test_delivery_refuses_contracts_revoked_after_publication(server: Scripted, made: Branch) -> None:
    leaf = made.contract().certificate
    server.on("/sub2", answer(leaf, made.sub2))

    async def test(bench: Bench) -> None:
        keys = (await bench.service.ensure_good([made.chain(leaf)], AT)).keys
        at = AT + timedelta(minutes=40)
        server.on("/sub2", answer(leaf, made.sub2, this_update=at, next_update=at + HOUR, revoked_at=at))
        server.on("/root", answer(made.sub1.certificate, made.root, this_update=at, next_update=at + HOUR))
        swept = await bench.service.refresh_due(at)
        assert (swept.refreshed, swept.failed) == (2, 0)
        with pytest.raises(RevokedError):
            check_refs(keys, await bench.store.read(queries.load(keys, bench.service.rules)), bench.service.rules, at)
        # Revoked is final: an older and a newer "good" change nothing, and no responder is queried again.
        server.on("/sub2", answer(leaf, made.sub2, this_update=at + HOUR, next_update=at + DAY))
        before = server.count("/sub2")
        await bench.service.refresh_due(at + 40 * timedelta(minutes=1))
        assert server.count("/sub2") == before
        with pytest.raises(RevokedError):
            await bench.service.ensure_good([made.chain(leaf)], at + HOUR)

    run(test)


def test_check_vehicle_fetches_evidence_in_the_background(server: Scripted) -> None:
    pki = PKI.generate(
        AT, status_urls=lambda name: StatusURLs(ocsp=server.url + "/oem") if "OEM Sub2" in name else StatusURLs()
    )
    car = pki.vehicle("WEX0TEST000000001", now=AT).certificate
    chain = pki.anchors().verify(car, [], usage=Usage.OEM_PROVISIONING, now=AT, profile=Profile.ISO2)
    server.on("/oem", Reply(body=answer(car, pki.oem_sub2, revoked_at=AT - DAY), delay=1.5))

    async def test(bench: Bench) -> None:
        began = time.monotonic()
        await bench.service.check_vehicle(chain, AT)
        await bench.service.check_vehicle(chain, AT)
        assert time.monotonic() - began < 1.4, "the answer was not waited for"
        with pytest.raises(RevokedError):  # noqa: PT012
            while time.monotonic() < began + 30:
                await bench.service.check_vehicle(chain, AT)
                await asyncio.sleep(0.05)
        assert len(server.received) == 1

    run(test)
