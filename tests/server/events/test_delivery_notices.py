"""BufferedNotifier: buffering and writing of delivery events."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import CapturingLogger

from ccp.errors import Unavailable
from ccp.server.domain.parties import PartyRole
from ccp.server.events import BufferedNotifier, Subscribers, delivery_notices
from ccp.server.storage import connect
from ccp.server.storage.queries import contracts, parties, webhooks
from tests.databases import sql
from tests.server.events.receiver import webhook
from tests.server.storage.made import AT, CAR, FIRST, SECOND_CONTRACT, new_database, variant, write
from tests.world import party


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A vehicle with two contracts, and an eMSP that wants to know when they are handed out."""
    made = new_database(tmp_path)
    write(
        made,
        parties.add(party("emsp", PartyRole.EMSP, providers="DEEXA"), "hash", AT),
        webhooks.put(webhook("http://one.example/", "emsp", "emsp.contract.delivered.to.oem")),
        contracts.publish(variant(), AT),
        contracts.publish(variant(SECOND_CONTRACT), AT),
    )
    return made


def notices(url: str) -> list[tuple[int, str]]:
    kind = "emsp.contract.delivered.to.oem"
    return sql(url, "select rev, emaid from outbox where kind = ? order by rev", kind)


def test_notifier_drops_and_counts_events_beyond_its_buffer(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_notices, "_MAX_BUFFERED", 3)
    monkeypatch.setattr(delivery_notices, "_BATCH", 2)
    log = CapturingLogger()
    monkeypatch.setattr(delivery_notices, "_log", log)

    async def whole() -> None:
        store = connect(url)
        await store.open()
        try:
            subscribers = Subscribers(store)
            await subscribers.refresh()
            notifier = BufferedNotifier(store, subscribers)
            for _ in range(2):
                notifier.contracts_delivered([variant(), variant(), variant(SECOND_CONTRACT)], AT)
            assert notices(url) == [], "nothing is written by who hands out"
            await notifier.flush()
            assert notifier.new_events.is_set()
            notifier.contracts_delivered([variant()], AT)
            await notifier.close()
        finally:
            await store.close()

    asyncio.run(whole())
    assert notices(url) == [(3, FIRST), (4, SECOND_CONTRACT), (5, FIRST), (6, FIRST)]
    assert [(*call.args, call.kwargs["events"]) for call in log.calls] == [("events dropped", 1)]
    assert sql(url, "select rev from vehicle where pcid = ?", CAR) == [(6,)]


def test_notifier_keeps_events_that_were_not_written(url: str) -> None:
    async def whole() -> None:
        store = connect(url)
        await store.open()
        try:
            subscribers = Subscribers(store)
            await subscribers.refresh()
            notifier = BufferedNotifier(store, subscribers)
            notifier.contracts_delivered([variant()], AT)
            sql(url, "alter table outbox rename to elsewhere")
            with pytest.raises(Unavailable):
                await notifier.flush()
            sql(url, "alter table elsewhere rename to outbox")
            await notifier.flush()
        finally:
            await store.close()

    asyncio.run(whole())
    assert notices(url) == [(3, FIRST)]
