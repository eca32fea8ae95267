"""Invalidation of a vehicle's contracts with concurrent writers."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from pathlib import Path

from ccp.errors import NotFound
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.default_contracts import VehicleRules
from ccp.server.storage import connect
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import contracts as queries
from ccp.server.storage.queries.vehicles import invalidate, list_bindings
from ccp.testing.pki import PKI
from tests.databases import fresh, with_schema
from tests.server.external.examples import stored_contract
from tests.world import AT, new_emaid, new_pcid

MANY = VehicleRules(max_contracts=20, max_contracts_of_provider=20)


def test_vehicle_events_have_own_revisions_and_contracts_release_claims(tmp_path: Path, pkis: dict[str, PKI]) -> None:
    url = fresh(tmp_path)
    with_schema(url)
    template = stored_contract(pkis["iso2"])
    pcid, other = new_pcid(), new_pcid()
    emaids = [new_emaid() for _ in range(20)]

    def contract(index: int, vehicle: str = pcid) -> SignedContract:
        began = AT + timedelta(hours=1)  # After the events, so that no publication is refused.
        return template._replace(emaid=emaids[index], pcid=vehicle, created_at=began)

    async def everything() -> None:
        stores = [connect(url) for _ in range(3)]
        for store in stores:
            await store.open()
        for index in range(20):
            await stores[0].write(queries.publish(contract(index), AT, MANY))

        async def withdraw(index: int) -> None:
            try:
                await stores[1].write(queries.withdraw(emaids[index], AT))
            except NotFound:
                return

        await asyncio.gather(
            *(store.write(invalidate(pcid, AT)) for store in stores),
            *(withdraw(index) for index in range(5)),
            *(stores[2].write(queries.publish(contract(index, other), AT, MANY)) for index in range(5, 10)),
            *(stores[0].write(queries.publish(contract(index), AT, MANY)) for index in range(10, 15)),
        )
        await stores[0].write(invalidate(pcid, AT))
        assert await stores[0].read(list_bindings(pcid)) == []
        assert {binding.emaid for binding in await stores[0].read(list_bindings(other))} == set(emaids[5:10])
        events = await stores[0].read(_events(pcid))
        assert len({rev for rev, _, _ in events}) == len(events)
        balance = Counter[str]()
        for _, kind, emaid in sorted(events):
            balance[emaid] += {"oem.contract.created": 1, "oem.contract.deleted": -1}.get(kind, 0)
            assert balance[emaid] in (0, 1)
        assert set(balance.values()) == {0}
        claims = await stores[0].read(_claims())
        assert claims == {(emaid, other) for emaid in emaids[5:10]}
        for store in stores:
            await store.close()

    asyncio.run(everything())


def test_invalidate_vehicle_removes_only_stale_contracts(tmp_path: Path, pkis: dict[str, PKI]) -> None:
    url = fresh(tmp_path)
    with_schema(url)
    pcid = new_pcid()
    old, new = (stored_contract(pkis["iso2"])._replace(pcid=pcid) for _ in range(2))

    async def everything() -> None:
        store = connect(url)
        await store.open()
        await store.write(queries.publish(old, AT - timedelta(hours=1)))
        await store.write(queries.publish(new, AT))
        assert await store.write(invalidate(pcid, AT, lambda binding: binding.published_at < AT)) == [old.emaid]
        assert [binding.emaid for binding in await store.read(list_bindings(pcid))] == [new.emaid]
        assert await store.write(invalidate(pcid, AT, lambda binding: False)) == []
        assert await store.write(invalidate(new_pcid(), AT)) == []
        await store.close()

    asyncio.run(everything())


def _events(pcid: str) -> Query[list[tuple[int, str, str]]]:
    rows = yield "select rev, kind, emaid from outbox where pcid = $1", (pcid,)
    return [(rev, kind, emaid) for rev, kind, emaid in rows]


def _claims() -> Query[set[tuple[str, str]]]:
    rows = yield "select emaid, pcid from emaid_claim", ()
    return {(emaid, pcid) for emaid, pcid in rows}
