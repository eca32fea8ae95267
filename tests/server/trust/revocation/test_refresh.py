"""Refresh of evidence, and CRLs of the revocation service."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from ccp.errors import RevokedError, Unavailable
from ccp.server.runtime.background import BackgroundTasks
from ccp.server.storage.queries import revocation as queries
from ccp.server.storage.queries.anchors import add
from ccp.server.trust.anchors import trusted_certificate
from ccp.testing.pki import Algorithm, StatusURLs
from ccp.testing.revocation import sign_crl
from ccp.x509.profiles import AnchorRole
from ccp.x509.revocation_evidence import CertificateRef, RevocationStatus, certificate_ref
from ccp.x509.revocation_policy import check_refs
from tests.scripted_server import Reply, Scripted
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


async def known(bench: Bench, *keys: CertificateRef) -> RevocationStatus | None:
    found = (await bench.store.read(queries.load(keys, bench.service.rules))).evidence
    return found[keys[0].issuer, keys[0].serial].status if found else None


# --- CRLs ---


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_crl_covers_every_certificate_of_its_issuer(algorithm: Algorithm, server: Scripted) -> None:
    made = branch(algorithm, {"sub2": StatusURLs(crl=server.url + "/2.crl")})
    good, also_good, revoked = (made.contract().certificate for _ in range(3))
    serve_crl(server, "/2.crl", crl(made.sub2, revoked))

    async def test(bench: Bench) -> None:
        cleared = await bench.service.ensure_good([made.chain(good)], AT)
        assert f"CRL {server.url}/2.crl" in cleared.sentences[0]
        await bench.service.ensure_good([made.chain(also_good)], AT)
        with pytest.raises(RevokedError):
            await bench.service.ensure_good([made.chain(revoked)], AT)
        assert server.count("/2.crl") == 1

    run(test)


def test_configured_crl_refuses_a_revoked_sub_ca(server: Scripted) -> None:
    """None of the certificates names an address; the operator's own list is what is asked. It may be private."""
    made = branch()
    serve_crl(server, "/arl.crl", crl(made.root, made.sub1.certificate))

    async def test(bench: Bench) -> None:
        with pytest.raises(RevokedError, match="eMSP Sub1 CA SIM"):
            await bench.service.ensure_good([made.chain(made.contract().certificate)], AT)

    for name in ("eMSP Root CA SIM", made.root.certificate.fingerprint):
        run(test, crl_urls={name: server.url + "/arl.crl"}, egress_allow_networks=())


def test_crl_is_fetched_conditionally_and_never_older(server: Scripted) -> None:
    made = branch(addresses={"sub2": StatusURLs(crl=server.url + "/2.crl")})
    held, other = made.contract().certificate, made.contract().certificate
    serve_crl(server, "/2.crl", crl(made.sub2, held, number=7))

    async def test(bench: Bench) -> None:
        key = certificate_ref(held, made.sub2.certificate)
        await bench.service.ensure_good([made.chain(other)], AT)
        later = AT + timedelta(hours=13)  # past the half-life of a day
        assert (await bench.service.refresh_due(AT)).refreshed == 0
        assert (await bench.service.refresh_due(later)).refreshed == 1
        assert server.received[-1].headers["if-none-match"] == '"1"'
        # A list with a lower number, whatever its dates say, changes nothing.
        at = later + 20 * HOUR
        fresh = {"this_update": at, "next_update": at + DAY}
        serve_crl(server, "/2.crl", crl(made.sub2, other, number=6, **fresh), '"2"')
        assert (await bench.service.refresh_due(at)).failed == 1
        with pytest.raises(Unavailable, match="the number 6, the one before it had 7"):
            await bench.service.ensure_good([made.chain(other, at)], at)
        # A newer one is taken, and what it no longer lists stays revoked.
        serve_crl(server, "/2.crl", crl(made.sub2, number=8, **fresh), '"3"')
        await bench.service.ensure_good([made.chain(other, at)], at)
        assert await known(bench, key) is RevocationStatus.REVOKED

    run(test)


def test_crl_of_ten_thousand_entries_is_one_transaction(server: Scripted) -> None:
    made = branch(addresses={"sub2": StatusURLs(crl=server.url + "/2.crl")})
    leaf = made.contract().certificate
    revoked = dict.fromkeys((leaf.serial_number, *range(1, 10_038)), AT - DAY)
    der = sign_crl(made.sub2, revoked, this_update=AT, next_update=AT + DAY)
    serve_crl(server, "/2.crl", der)

    async def test(bench: Bench) -> None:
        with pytest.raises(RevokedError):
            await bench.service.ensure_good([made.chain(leaf)], AT)
        key = certificate_ref(leaf, made.sub2.certificate)
        for serial in (1, 400, 401, 9_999, 10_037):
            assert await known(bench, key._replace(serial=serial)) is RevocationStatus.REVOKED
        assert await known(bench, key._replace(serial=10_038)) is None

    run(test)


def test_ocsp_is_used_if_the_crl_is_unavailable(server: Scripted) -> None:
    made = branch(addresses={"sub2": StatusURLs(server.url + "/2", server.url + "/2.crl")})
    leaf = made.contract().certificate
    server.on("/2", answer(leaf, made.sub2))

    async def test(bench: Bench) -> None:
        cleared = await bench.service.ensure_good([made.chain(leaf)], AT)
        assert "OCSP" in cleared.sentences[0]
        assert server.count("/2.crl") == 1

    run(test)


def test_refresh_due_loads_configured_crls_in_advance(server: Scripted) -> None:
    made = branch()
    serve_crl(server, "/oem.crl", crl(made.pki.oem_sub2))

    async def test(bench: Bench) -> None:
        await bench.store.write(add(trusted_certificate(made.pki.oem_sub2.certificate, AnchorRole.OEM, "test", AT)))
        assert (await bench.service.refresh_due(AT)).refreshed == 1
        assert (await bench.service.refresh_due(AT)).refreshed == 0
        found = await bench.store.read(
            queries.find_crl(made.pki.oem_sub2.certificate.issuer_key_id, server.url + "/oem.crl")
        )
        assert found is not None

    run(test, crl_urls={"OEM Sub2 CA SIM": server.url + "/oem.crl"})


# --- Sweeping ---


def test_refresh_due_runs_at_half_the_validity(server: Scripted, made: Branch) -> None:
    leaf = made.contract().certificate
    server.on("/sub2", answer(leaf, made.sub2))

    async def test(bench: Bench) -> None:
        await bench.service.ensure_good([made.chain(leaf)], AT)
        assert (await bench.service.refresh_due(AT + timedelta(minutes=29))).refreshed == 0
        asked = server.count("/sub2")
        assert (await bench.service.refresh_due(AT + timedelta(minutes=31))).refreshed == 2
        assert server.count("/sub2") == asked + 1
        # Nothing is due right after, here or in another worker.
        assert (await bench.service.refresh_due(AT + timedelta(minutes=32))).refreshed == 0

    run(test)


@pytest.mark.parametrize(("chance", "share"), [(0.0, 0.4), (0.5, 0.5), (1.0, 0.6)])
def test_refresh_delay_is_spread_around_half_the_validity(
    server: Scripted, made: Branch, chance: float, share: float
) -> None:
    leaf = made.contract().certificate
    server.on("/sub2", answer(leaf, made.sub2, next_update=AT + 10 * HOUR))

    async def test(bench: Bench) -> None:
        async with beside(bench, chance=chance, egress_allow_networks=LOOPBACK) as service:
            await service.ensure_good([made.chain(leaf)], AT)
            due = AT + 10 * HOUR * share
            for at, found in ((due - timedelta(seconds=1), 0), (due, 1)):
                watched = await bench.store.write(queries.due_certificates(at, AT + 10 * HOUR, 10))
                assert [one.certificate for one in watched].count(leaf.der) == found

    run(test)


def test_refresh_due_never_stores_older_evidence(server: Scripted, made: Branch) -> None:
    leaf = made.contract().certificate
    server.on("/sub2", answer(leaf, made.sub2))

    async def test(bench: Bench) -> None:
        keys = (await bench.service.ensure_good([made.chain(leaf)], AT)).keys
        identity = keys[0].issuer, keys[0].serial
        before = (await bench.store.read(queries.load(keys, bench.service.rules))).evidence[identity]
        at = AT + timedelta(minutes=31)
        server.on("/sub2", answer(leaf, made.sub2, this_update=AT - DAY, next_update=AT + 2 * DAY))
        await bench.service.refresh_due(at)
        assert (await bench.store.read(queries.load(keys, bench.service.rules))).evidence[identity] == before

    run(test)


def test_refresh_task_survives_failures(server: Scripted, made: Branch) -> None:
    leaf = made.contract().certificate
    server.on("/sub2", answer(leaf, made.sub2))

    async def test(bench: Bench) -> None:
        keys = (await bench.service.ensure_good([made.chain(leaf)], AT)).keys
        server.forget()
        at = AT + timedelta(minutes=31)
        swept = await bench.service.refresh_due(at)
        assert (swept.refreshed, swept.failed) == (0, 2)
        check_refs(keys, await bench.store.read(queries.load(keys, bench.service.rules)), bench.service.rules, at)
        # Tried again some minutes later, not in every round.
        assert (await bench.service.refresh_due(at + timedelta(seconds=30))).failed == 0
        assert (await bench.service.refresh_due(at + timedelta(minutes=3))).failed == 2
        await bench.store.close()
        with pytest.raises(AssertionError):  # For the supervision of background tasks, which counts and tries again.
            await bench.service.refresh_due(at + HOUR)

    run(test)


def test_refresh_due_removes_expired_certificates(server: Scripted, made: Branch) -> None:
    leaf = made.contract().certificate
    server.on("/sub2", answer(leaf, made.sub2))

    async def test(bench: Bench) -> None:
        keys = (await bench.service.ensure_good([made.chain(leaf)], AT)).keys
        assert await known(bench, keys[0]) is RevocationStatus.GOOD
        asked = len(server.received)
        await bench.service.refresh_due(leaf.not_after + timedelta(seconds=1))
        assert await known(bench, keys[0]) is None
        assert server.count("/sub2") == 1
        assert len(server.received) > asked  # the sub-CA and the list live on

    run(test)


def test_ocsp_is_used_while_a_crl_takes_long(server: Scripted) -> None:
    made = branch(addresses={"sub2": StatusURLs(server.url + "/2", server.url + "/2.crl")})
    leaf = made.contract().certificate
    server.on("/2", answer(leaf, made.sub2))
    server.on("/2.crl", Reply(body=crl(made.sub2), delay=2.4))

    async def test(bench: Bench) -> None:
        cleared = await bench.service.ensure_good([made.chain(leaf)], AT)
        assert "OCSP" in cleared.sentences[0]
        # The list comes in the end, and then answers for the next one.
        following = made.contract().certificate
        key = certificate_ref(following, made.sub2.certificate)
        async with asyncio.timeout(20):
            while not (await bench.store.read(queries.load([key], bench.service.rules))).crls:  # noqa: ASYNC110  polled
                await asyncio.sleep(0.02)
        assert "CRL" in (await bench.service.ensure_good([made.chain(following)], AT)).sentences[0]
        assert (server.count("/2"), server.count("/2.crl")) == (1, 1)

    run(test)


def test_refresh_task_runs_until_closed(server: Scripted) -> None:
    made = branch()
    serve_crl(server, "/oem.crl", crl(made.pki.oem_sub2))

    async def test(bench: Bench) -> None:
        await bench.store.write(add(trusted_certificate(made.pki.oem_sub2.certificate, AnchorRole.OEM, "test", AT)))
        background = BackgroundTasks()
        background.add(bench.service.refresh_task())
        while not server.received:  # noqa: ASYNC110  the server is a thread
            await asyncio.sleep(0.01)
        await background.close()

    run(test, crl_urls={"OEM Sub2 CA SIM": server.url + "/oem.crl"})
