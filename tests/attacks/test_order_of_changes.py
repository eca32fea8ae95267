"""Order of changes: events and audit rows have the time of the change in the database, and publications in progress
do not survive a provisioning event of their vehicle.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.attacks.provisioning_events import SECRET, send_event
from tests.scripted_server import Received, Reply, Scripted, json_reply, scripted
from tests.server.external.examples import chain_body
from tests.server.http.api.answers import sentences
from tests.world import Contract, Pool, new_emaid, start

CHANGED = (
    "The vehicle's provisioning certificate changed while the contract was being published; "
    "sign the contract for the current certificate and publish it again."
)


@pytest.fixture(scope="module")
def pcp() -> Iterator[Scripted]:
    with scripted() as fake:
        yield fake


@pytest.fixture(scope="module")
def around(pkis: dict[str, PKI], pcp: Scripted) -> Iterator[Pool]:
    with start(pkis, pcp_url=pcp.url, pcp_webhook_secret=SECRET) as pool:
        yield pool


@contextmanager
def under_way(pool: Pool, pcp: Scripted, car: Car, contract: Contract) -> Iterator[Future[httpx.Response]]:
    """A PUT that waits for the Provisioning Certificate Pool during the context and continues after it."""
    asked, go_on = threading.Event(), threading.Event()

    def answer(call: Received) -> Reply:
        asked.set()
        go_on.wait(2)
        return json_reply(chain_body(car.provisioning))

    path = f"/provisioningcertificates/{car.pcid}"
    pcp.on(path, answer)
    pool.token("cps")
    with ThreadPoolExecutor(1) as aside:
        sent = aside.submit(pool.cps.put, "/signedcontractdata", json=contract.body)
        try:
            assert asked.wait(10)
            pcp.on(path, json_reply(chain_body(car.provisioning)))
            yield sent
        finally:
            go_on.set()


def outbox(pool: Pool, car: Car) -> list[tuple[str, int]]:
    rows = pool.sql("select kind, created_at from outbox where pcid = ? order by rev", str(car.pcid))
    return [(kind.removeprefix("oem.contract."), at) for kind, at in rows]


def audited(pool: Pool, car: Car) -> list[tuple[str, int]]:
    """The audit rows about a vehicle's contracts, in order."""
    rows = pool.sql("select action, at, subject from audit order by lane, number")
    return [(action, at) for action, at, subject in rows if json.loads(subject).get("pcid") == car.pcid]


def test_event_time_is_the_time_of_the_change(around: Pool, pcp: Scripted) -> None:
    car = around.car()
    pcp.on(f"/provisioningcertificates/{car.pcid}", json_reply(chain_body(car.provisioning)))
    first = around.publish(car)
    with under_way(around, pcp, car, around.contract(car, first.emaid)) as late:
        assert around.emsp.delete(f"/signedcontractdata/{first.emaid}").status_code == 200
    assert late.result().status_code == 201
    kinds, times = zip(*outbox(around, car), strict=True)
    assert kinds == ("created", "deleted", "created")
    assert sorted(set(times)) == list(times)
    actions, stamps = zip(*audited(around, car), strict=True)
    assert actions == ("contract.published", "contract.withdrawn", "contract.published")
    assert stamps == times
    (stored,) = around.sql("select created_at, updated_at from contract where emaid = ?", str(first.emaid))
    assert stored == (times[2], times[2])


def test_change_times_of_a_vehicle_never_decrease(pool: Pool) -> None:
    car = pool.car()
    contracts = [pool.contract(car, new_emaid(provider)) for provider in ("DEEXA", "NLEXB", "NLEXC", "NLEXD")]
    pool.token("cps"), pool.token("emsp")

    async def load() -> None:
        headers = {"Authorization": f"Bearer {pool.token('cps')}"}
        base = str(pool.cps.base_url)
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=30) as http:
            rounds = [http.put("signedcontractdata", json=each.body) for each in contracts for _ in range(6)]
            rounds += [
                http.delete(
                    f"signedcontractdata/{contracts[0].emaid}",
                    headers={"Authorization": f"Bearer {pool.token('emsp')}"},
                )
                for _ in range(6)
            ]
            assert {answer.status_code for answer in await asyncio.gather(*rounds)} <= {200, 201, 404}

    asyncio.run(load())
    kinds, times = zip(*outbox(pool, car), strict=True)
    assert len(kinds) >= 24
    assert sorted(set(times)) == list(times)
    changes = [at for kind, at in zip(kinds, times, strict=True) if kind in ("created", "updated", "deleted")]
    assert sorted(at for _, at in audited(pool, car)) == changes


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "event_type", ["mo.prov.cert.factory.reset", "emsp.prov.cert.deleted", "emsp.prov.cert.updated"]
)
def test_publication_in_progress_is_refused_after_a_provisioning_event(
    around: Pool, pcp: Scripted, event_type: str, known: bool
) -> None:
    car = around.car()
    if known:
        pcp.on(f"/provisioningcertificates/{car.pcid}", json_reply(chain_body(car.provisioning)))
        around.publish(car, new_emaid("NLEXB"))
        around.sql("update contract set provisioning_key = null where pcid = ?", str(car.pcid))
    contract = around.contract(car)
    with under_way(around, pcp, car, contract) as late:
        assert send_event(around, event_type, car.pcid).status_code == 200
    assert sentences(late.result(), 400) == [CHANGED]
    assert around.listed(car) == []
    # Signed anew and sent again it is taken.
    around.publish(car, contract.emaid)
    assert len(around.listed(car)) == 1


def test_provisioning_event_that_is_late_removes_earlier_publications(around: Pool, pcp: Scripted) -> None:
    """The event's time is before the contract was stored, and after its publication began."""
    car = around.car()
    with under_way(around, pcp, car, around.contract(car)) as late:
        happened = datetime.now(UTC)
    assert late.result().status_code == 201
    assert send_event(around, "mo.prov.cert.factory.reset", car.pcid, happened).status_code == 200
    assert around.listed(car) == []


def test_provisioning_event_that_is_old_keeps_later_publications(around: Pool, pcp: Scripted) -> None:
    car = around.car()
    pcp.on(f"/provisioningcertificates/{car.pcid}", json_reply(chain_body(car.provisioning)))
    before = datetime.now(UTC) - timedelta(seconds=5)
    around.publish(car)
    assert send_event(around, "mo.prov.cert.factory.reset", car.pcid, before).status_code == 200
    assert len(around.listed(car)) == 1


def test_publication_begins_with_the_head_of_its_request(around: Pool, pcp: Scripted) -> None:
    car = around.car()
    pcp.on(f"/provisioningcertificates/{car.pcid}", json_reply(chain_body(car.provisioning)))
    body = json.dumps(around.contract(car).body).encode()
    headers = {"Authorization": f"Bearer {around.token('cps')}", "Content-Type": "application/json"}

    def slowly() -> Iterator[bytes]:
        yield body[:100]
        time.sleep(0.3)  # Until the pool has read the head, which comes on a connection that it has to accept first.
        answer: Any = send_event(around, "mo.prov.cert.factory.reset", car.pcid)
        assert answer.status_code == 200
        yield body[100:]

    url = f"{around.cps.base_url}signedcontractdata"
    answer = httpx.put(url, headers=headers, content=slowly(), timeout=10)
    assert sentences(answer, 400) == [CHANGED]
    assert around.listed(car) == []
