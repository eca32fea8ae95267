"""A provisioning event concurrent with a publication, on PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import asyncpg

from ccp.testing.pki import PKI
from tests.attacks.provisioning_events import SECRET, send_event
from tests.databases import Server, sql
from tests.world import Pool, start


def waiting_for_locks(url: str, number: int) -> None:
    """Wait until this number of transactions wait for a lock."""
    deadline = time.monotonic() + 4  # They themselves wait for five seconds.
    query = "select count(distinct pid)::int from pg_locks where not granted"
    while sql(url, query)[0][0] != number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_provisioning_event_removes_a_concurrent_publication(pkis: dict[str, PKI], postgres: Server) -> None:
    url = postgres.database()
    with start({"iso2": pkis["iso2"]}, database=url, pcp_webhook_secret=SECRET) as pool:
        asyncio.run(_race(pool, url))


async def _race(pool: Pool, url: str) -> None:
    car = pool.car()
    contract = pool.contract(car)
    pool.token("cps")
    held = await asyncpg.connect(url)
    with ThreadPoolExecutor(2) as aside:
        loop = asyncio.get_running_loop()
        await held.execute("begin; lock table audit in share mode")  # The last thing that a publication writes.
        put = loop.run_in_executor(aside, lambda: pool.cps.put("/signedcontractdata", json=contract.body))
        await asyncio.to_thread(waiting_for_locks, url, 1)
        reset = loop.run_in_executor(aside, send_event, pool, "mo.prov.cert.factory.reset", car.pcid)
        await asyncio.to_thread(waiting_for_locks, url, 2)
        await held.execute("commit")
        assert (await put).status_code == 201
        assert (await reset).status_code == 200
    await held.close()
    assert sql(url, "select emaid from contract where pcid = $1", str(car.pcid)) == []
    assert sql(url, "select emaid from emaid_claim") == []
    kinds = [kind for (kind,) in sql(url, "select kind from outbox where pcid = $1 order by rev", str(car.pcid))]
    assert kinds == ["oem.contract.created", "oem.contract.deleted", "emsp.prov.cert.factory.reset"]
