"""Two pools: one takes its roots from the other, and learns at once of roots and contracts there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx

from ccp.server.domain.parties import PartyRole
from ccp.server.sandbox.local_pool import loopback, running
from ccp.server.trust.anchors import add_anchor, trusted_certificate
from ccp.testing.pki import PKI
from ccp.x509.profiles import AnchorRole
from tests.server.pool.peers.requests import deliver, until_known
from tests.server.pool.subscriptions.system import command, subscribe
from tests.waiting import wait_until
from tests.world import AT, Pool, opened, party, start

EVENTS: dict[str, Any] = {
    "event_dispatch": True,
    "event_allow_http": True,
    "egress_allow_networks": ("127.0.0.0/8",),
    "refresh_interval": 0.05,
}
PEER = party("pool-a", PartyRole.CCP)
"""The first pool as the second one has registered it: it may read the roots, and get their events."""
PEER_OF_OEM = party("pool-a", PartyRole.CCP, PartyRole.OEM, wmis="WXA")
"""The same, registered for a WMI too: it may get the events of its vehicles' contracts."""


@contextmanager
def root_client(pkis: dict[str, PKI], other: Pool, **options: Any) -> Iterator[Pool]:
    """A pool that takes its roots from another pool, with the credentials that this has given it."""
    credentials = {
        "rcp_url": other.base_url,
        "rcp_dialect": "opcp",
        "rcp_token_url": f"{other.base_url}/oauth/token",
        "rcp_client_id": "pool-a",
        "rcp_client_secret": other.world.member("pool-a").secret,
    }
    with start(pkis, refresh_interval=0.05, **credentials, **options) as pool:
        yield pool


def trust(pool: Pool, pki: PKI) -> None:
    """Let a pool trust the roots of a PKI, as `ccp trust add` does."""
    now = datetime.now(UTC)
    roots = {AnchorRole.V2G: pki.v2g_root, AnchorRole.EMSP: pki.emsp_root, AnchorRole.OEM: pki.oem_root}

    async def add() -> None:
        async with opened(pool.settings) as store:
            for role, root in roots.items():
                await store.write(add_anchor(trusted_certificate(root.certificate, role, "test", now), "test", now))

    asyncio.run(add())


def credentials_of(pool: Pool) -> dict[str, str]:
    return {
        "CCP_RCP_TOKEN_URL": str(pool.settings.rcp.token_url),
        "CCP_RCP_CLIENT_ID": "pool-a",
        "CCP_RCP_CLIENT_SECRET": pool.settings.rcp.client_secret.get_secret_value(),
    }  # fmt: skip


def trusted_from(pool: Pool, other: Pool) -> int:
    """The number of anchors that a pool has taken from another one."""
    count: int = pool.sql("select count(*) from trust_anchor where source = ?", other.base_url)[0][0]
    return count


def test_root_added_at_one_pool_is_used_by_the_other_without_polling(pkis: dict[str, PKI]) -> None:
    with start(pkis, (PEER,), **EVENTS) as other, root_client(pkis, other, rcp_interval=86_400) as pool:
        trust(other, PKI.generate(AT))
        subscribe(pool, "rcp", **credentials_of(pool))
        wait_until(lambda: trusted_from(pool, other) == 3)  # The next periodic synchronisation is a day away.
        car = pool.car()
        contract = pool.contract(car, signer="stranger")
        assert pool.put(contract).status_code == 400
        trust(other, pkis["stranger"])
        wait_until(lambda: pool.put(contract).status_code == 201, timeout=15)
        assert [item["emaid"] for item in pool.listed(car)] == [contract.emaid]


def test_contract_published_at_a_peer_is_found_at_once_after_its_event(pkis: dict[str, PKI]) -> None:
    with start(pkis, (PEER_OF_OEM,), pool_id="pool-b", **EVENTS) as other:
        database = {"peer_negative_ttl": 3600, "refresh_interval": 0.05}
        with start(pkis, **database) as pool, second_worker(pool) as worker:
            secret = other.world.member("pool-a").secret
            command(pool, f"ccp peer add pool-b {other.base_url} --client-id pool-a", CCP_PEER_SECRET=secret)
            for each in (pool, worker):
                until_known(each, "pool-b")
            command(pool, "ccp neighbour subscribe pool-b --event oem.contract.created")
            address = f"{pool.base_url}/opnc/v1/ccp/events/{pool.sql('select id from subscription')[0][0]}"
            wait_until(lambda: httpx.post(address).status_code == 403)  # 404 until the subscription is loaded.
            car = pool.car(wmi="WXA")
            for each in (pool, worker):
                assert "metaData" in deliver(each, car)[0]
            contract = other.publish(car)
            for each in (pool, worker):
                wait_until(lambda each=each: deliver(each, car)[0]["emaid"] == contract.emaid)  # type: ignore[misc]


@contextmanager
def second_worker(pool: Pool) -> Iterator[Pool]:
    """Another worker on the database of a pool."""
    with loopback() as (listening, base_url):
        settings = pool.settings.model_copy(update={"base_url": pool.settings.base_url})
        with running(settings, listening, refresh_interval=0.05), httpx.Client(base_url=base_url, timeout=10) as http:
            worker = Pool(base_url, settings, pool.world, pool.database, http)
            try:
                yield worker
            finally:
                worker.close()
