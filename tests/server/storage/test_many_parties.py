"""The cost of reads does not depend on the number of parties and webhooks."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from ccp.errors import CCPError
from ccp.server.access.authorization_server import AuthorizationServer
from ccp.server.access.party_registry import PartyRegistry
from ccp.server.domain.actor import Actor
from ccp.server.domain.parties import PartyRole
from ccp.server.domain.subscriptions import EventKind
from ccp.server.events import Subscribers
from ccp.server.storage.engine import sqlite_connection
from ccp.server.storage.engine.query import Row
from ccp.server.storage.engine.stored_secrets import CODEC
from ccp.server.storage.queries import contracts, outbox, webhooks
from tests.databases import sql
from tests.server.events.receiver import webhook
from tests.server.storage.counting import CountingStore
from tests.server.storage.made import AT, FIRST, opened, variant
from tests.server.storage.party_data import add_parties
from tests.world import party

BY = Actor("cli:test")


async def used(store: CountingStore) -> list[list[tuple[str, int]]]:
    """What is read by each thing that happens to a pool which is up to date."""
    register = PartyRegistry(store)
    authority = AuthorizationServer(store, issuer="https://pool.example", lifetime=60)
    subscribers = Subscribers(store)
    await authority.refresh_parties()
    await subscribers.refresh()
    store.taken()
    store.all.clear()
    found = []

    async def note() -> None:
        await authority.refresh_parties()
        await subscribers.refresh()
        found.append(store.taken())

    await register.edit("maker", lambda p: replace(p, name="Maker Ltd"), BY, AT)
    await note()
    await register.add(party("added", PartyRole.CPO), BY, AT, "secret")
    await note()
    with pytest.raises(CCPError):
        await register.add(replace(party("another", PartyRole.CPO), name="ADDED"), BY, AT, "secret")
    await note()
    assert (await register.get_by_name("maker ltd")).client_id == "maker"
    await register.disable("emsp", BY, AT)
    await note()
    assert not subscribers.wants(EventKind.DELIVERED, FIRST)
    await register.enable("emsp", BY, AT)
    await note()
    assert subscribers.wants(EventKind.DELIVERED, FIRST)
    await store.write(contracts.publish(variant(), AT))
    store.taken()
    assert await store.write(outbox.fan_out(AT)) == 1
    await note()
    await store.write(webhooks.put(webhook("http://new.example/", "maker")))
    await note()
    return found


def test_parties_in_any_number_do_not_slow_reads(url: str) -> None:
    async def run() -> tuple[list[list[tuple[str, int]]], list[tuple[str, Row]]]:
        async with opened(url) as inner:
            store = CountingStore(inner)
            return await used(store), store.all

    add_parties(url, 2)
    few, _ = asyncio.run(run())
    emptied(url)
    add_parties(url, 120)
    many, statements = asyncio.run(run())
    assert many == few
    assert max(rows for step in many for _, rows in step) <= 5
    assert sql(url, "select count(*) from delivery") == [(1,)]
    if url.startswith("sqlite:"):
        plans = {
            statement: sql(url, f"explain query plan {sqlite_connection._dialect(statement)}", *parameters)
            for statement, parameters in statements
            if statement is not CODEC[0]  # The engine answers it without the database.
        }
        small = ("change_count", "CONSTANT", "USING INDEX party_not_folded", "USING INDEX outbox_created_at")
        scans = [
            (statement, step[-1])
            for statement, plan in plans.items()
            for step in plan
            if step[-1].startswith("SCAN") and not step[-1].endswith(small)
        ]
        assert scans == [], "each row is found by an index"


def test_party_reload_yields_to_the_event_loop_between_portions(url: str) -> None:
    add_parties(url, 120)

    async def run() -> None:
        async with opened(url) as inner:
            store = CountingStore(inner)
            turns = 0
            reading = asyncio.ensure_future(PartyRegistry(store).list_page("oem-1", 105))
            while not reading.done():
                await asyncio.sleep(0)
                turns += 1
            found, more = await reading
            assert (len(found), more) == (105, True)
            ids = [each.client_id for each in found]
            assert ids == sorted(ids)
            assert ids[0] == "oem-10"
            assert max(rows for _, rows in store.taken()) <= 100
            assert turns >= 2
            last, more = await PartyRegistry(store).list_page(ids[-1], 105)
            assert not more
            assert len({*ids, *(each.client_id for each in last)}) == 118, "all but emsp, maker, oem-0 and oem-1"
            assert len(await PartyRegistry(store).list_all()) == 122

    asyncio.run(run())


def emptied(url: str) -> None:
    for table in (
        "party", "party_owns", "party_secret", "webhook", "delivery", "outbox", "contract", "emaid_claim", "vehicle",
        "change_log",
    ):  # fmt: skip
        sql(url, f"delete from {table}")
    sql(url, "update change_count set number = 0")
