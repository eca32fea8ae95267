"""Dispatcher: search for due deliveries, and its cost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ccp.errors import Unavailable
from ccp.ids import EMAID, PCID
from ccp.server.domain.parties import PartyRole
from ccp.server.domain.subscriptions import Webhook
from ccp.server.events import Dispatcher, Subscribers, dispatcher
from ccp.server.settings import Settings
from ccp.server.storage.engine import sqlite_connection
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import contracts, due_deliveries, outbox, parties, webhooks
from ccp.server.storage.queries.due_deliveries import Due
from tests.databases import Server, sql
from tests.server.events.receiver import receiving, webhook
from tests.server.storage.counting import CountingStore
from tests.server.storage.made import AT, NO_LIMITS, SECOND, new_database, opened, read, variant, write
from tests.waiting import wait_until
from tests.world import party

HOUR = timedelta(hours=1)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with a car maker."""
    server: Server | None = None if request.param == "sqlite" else request.getfixturevalue("postgres")
    made = new_database(tmp_path) if server is None else server.emptied()
    write(made, parties.add(party("oem", PartyRole.OEM, wmis="WEX"), "hash", AT))
    return made


def hooks(count: int, address: str = "http://127.0.0.1:9/") -> list[Webhook]:
    return [replace(webhook(address), id=f"hook-{number:04d}") for number in range(count)]


def queued(hook: Webhook, *due_at: datetime, car: int = 0) -> Query[None]:
    """Deliveries of a webhook, each of a vehicle of its own unless one is named."""
    for number, at in enumerate(due_at):
        pcid = PCID(f"WEX0DUE00{hook.id[-4:]}{car or number:04d}")
        values = (
            pcid, number + 1, 0, hook.id, f"{hook.id}/{number}/{car}", "oem.contract.created", "DEEXAS00000001",
            "urn:iso:15118:2:2013:MsgDef", "{}", contracts.microseconds(AT), contracts.microseconds(at),
            contracts.microseconds(at), 0, "waiting", None, None, None,
        )  # fmt: skip
        yield outbox._INSERT, values


def all_of(*steps: Query[None]) -> Query[None]:
    for each in steps:
        yield from each


def test_due_webhooks_counts_due_deliveries_only(url: str) -> None:
    late, now, both = hooks(3)
    write(url, all_of(queued(late, AT + HOUR), queued(now, AT, AT - SECOND), queued(both, AT + SECOND, AT)))
    assert read(url, due_deliveries.due_webhooks(AT)) == Due({now.id: 2, both.id: 1}, complete=True)
    assert read(url, due_deliveries.due_webhooks(AT - HOUR)) == Due({}, complete=True)


def test_due_webhooks_covers_long_queues(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(due_deliveries, "MAX_EXAMINED", 3)
    monkeypatch.setattr(due_deliveries, "PAGE_SIZE", 2)
    oldest, silent, between, newest, late = hooks(5)
    write(url, all_of(
        queued(oldest, AT - HOUR), queued(silent, *(AT - 60 * SECOND * n for n in range(1, 11))),
        queued(between, AT - 330 * SECOND), queued(newest, AT), queued(late, AT + HOUR),
    ))  # fmt: skip
    found = read(url, due_deliveries.due_webhooks(AT))
    assert (set(found.webhooks), found.complete) == ({oldest.id, silent.id, newest.id}, False)
    first, after = read(url, due_deliveries.due_webhooks_page(AT, ""))
    assert (first, after) == ({oldest.id, silent.id}, silent.id)
    second, after = read(url, due_deliveries.due_webhooks_page(AT, silent.id))
    assert (second, after) == ({between.id, newest.id}, newest.id)
    assert read(url, due_deliveries.due_webhooks_page(AT, newest.id)) == (set(), None)


def test_due_webhooks_uses_the_index(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    for statement in (due_deliveries._OLDEST, due_deliveries._NEWEST):
        plan = sql(url, f"explain query plan {sqlite_connection._dialect(statement)}", 1, 1)
        steps = [step[-1] for step in plan]
        assert any("USING INDEX delivery_lease_until (lease_until<?)" in step for step in steps), steps
        assert not any(step.startswith("SCAN delivery") for step in steps), steps


# --- Dispatchers -----------------------------------------------------------------------------------------------------


def with_dispatcher(
    url: str,
    registered: list[Webhook],
    change: Query[None],
    use: Callable[[Dispatcher, CountingStore], Awaitable[None]],
) -> None:
    for hook in registered:
        write(url, webhooks.put(hook))
    write(url, change)

    async def run() -> None:
        async with opened(url) as inner:
            store = CountingStore(inner)
            subscribers = Subscribers(store)
            await subscribers.refresh()
            config = Settings(egress_allow_networks=("127.0.0.0/8",), event_allow_http=True, event_timeout=5)
            made = Dispatcher(store, subscribers, config, lambda: datetime.now(UTC))
            await made.run_once()
            store.taken()
            try:
                await use(made, store)
            finally:
                await made.close()

    asyncio.run(run())


def test_dispatcher_has_no_worker_without_due_deliveries(url: str) -> None:
    registered = hooks(60)
    later = datetime.now(UTC) + HOUR

    async def use(made: Dispatcher, store: CountingStore) -> None:
        await made.run_once()
        assert len(store.taken()) == 2, "the outbox and what is due"
        assert not made._workers

    with_dispatcher(url, registered, all_of(*(queued(hook, later) for hook in registered)), use)


def test_dispatcher_shrinks_fan_out_batches_on_timeouts(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, groups = outbox.fan_out, list[int]()

    def in_time(at: datetime, limit: int) -> Query[int]:
        groups.append(limit)
        if limit > 10:
            raise Unavailable("The database cannot write now; nothing was changed, try again.")
        return (yield from whole(at, limit))

    async def use(made: Dispatcher, store: CountingStore) -> None:
        for number in range(20):
            await store.write(contracts.publish(variant(EMAID(f"DEEXAF{number:08d}")), AT, NO_LIMITS))
        monkeypatch.setattr(outbox, "fan_out", in_time)
        for _ in range(20):
            with contextlib.suppress(Unavailable):
                await made.run_once()
        assert not await store.read(outbox.has_new_events())
        assert [limit for limit in groups if limit <= 10], groups

    with_dispatcher(url, hooks(1), all_of(), use)


def test_dispatcher_has_no_worker_for_disabled_webhooks(url: str) -> None:
    (hook,) = hooks(1)

    async def use(made: Dispatcher, store: CountingStore) -> None:
        await made.run_once()
        assert not made._workers

    with_dispatcher(url, [replace(hook, enabled=False)], queued(hook, AT), use)


def test_dispatcher_backs_off_while_no_delivery_can_be_leased(url: str) -> None:
    """The first delivery of the vehicle failed and is put off, so the other one has to wait."""
    (hook,) = hooks(1)
    now = datetime.now(UTC)

    async def use(made: Dispatcher, store: CountingStore) -> None:
        await settled(made)
        store.taken()
        for _ in range(5):
            await made.run_once()
            await settled(made)
        assert [statement for statement, _ in store.taken() if "from webhook" in statement] == []

    with_dispatcher(url, [hook], queued(hook, now + HOUR, now - SECOND, car=7), use)


def test_dispatcher_sends_new_events_beside_blocked_deliveries(url: str) -> None:
    now = datetime.now(UTC)
    with receiving() as receiver:
        (hook,) = hooks(1, receiver.url + "/one")

        async def use(made: Dispatcher, store: CountingStore) -> None:
            await settled(made)
            await store.write(queued(hook, now - SECOND, car=9))
            await made.run_once()
            await asyncio.to_thread(wait_until, lambda: len(receiver.asked("/one")) == 1, 10)

        with_dispatcher(url, [hook], queued(hook, now + HOUR, now - SECOND, car=7), use)


def test_dispatcher_stops_idle_workers_with_closed_circuits(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as receiver:
        well, silent = hooks(2)
        well = replace(well, url=receiver.url + "/well")

        async def use(made: Dispatcher, store: CountingStore) -> None:
            await asyncio.to_thread(wait_until, lambda: len(receiver.asked("/well")) == 1, 10)
            await asyncio.to_thread(
                wait_until, lambda: all(worker.free_slots == made._slots for worker in made._workers.values()), 10
            )
            assert set(made._workers) == {well.id, silent.id}
            monkeypatch.setattr(dispatcher, "_IDLE_TIMEOUT", 0.0)
            monkeypatch.setattr(dispatcher, "_METRICS_INTERVAL", 0.0)
            await made.run_once()
            assert set(made._workers) == {silent.id}

        now = datetime.now(UTC)
        with_dispatcher(url, [well, silent], all_of(queued(well, now), queued(silent, *[now] * 5)), use)


async def settled(made: Dispatcher) -> None:
    """Until the lines have done what they were woken for."""
    await asyncio.to_thread(wait_until, lambda: not any(worker.wake.is_set() for worker in made._workers.values()), 10)
    await asyncio.sleep(0.05)
