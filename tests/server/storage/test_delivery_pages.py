"""Lists of deliveries in pages: each delivery once, newest first, in one state and in all."""

from __future__ import annotations

import random

import pytest

from ccp.server.storage.queries import deliveries
from ccp.server.storage.queries.deliveries import BEFORE_ALL, DeliveryCursor, DeliveryState
from tests.server.storage.made import read, sql, write

INSERT = (
    "insert into delivery (pcid, rev, part, webhook_id, event_id, kind, emaid, namespace, payload, created_at, "
    "queued_at, lease_until, attempts, state) "
    "values (?, ?, 0, ?, ?, 'oem.contract.created', '', '', '{}', ?, 1, 1, 1, ?)"
)


@pytest.fixture
def filled(url: str) -> str:
    """Deliveries of two webhooks in every state, many of the same time."""
    generator = random.Random(7)
    for number in range(60):
        webhook_id = generator.choice(["first", "second"])
        at, state = generator.randrange(5), generator.choice(list(DeliveryState))
        pcid = f"WEX0PAGES{generator.randrange(9):08d}"
        sql(url, INSERT, pcid, number, webhook_id, f"event-{number:02}", at, state.value)
    return url


@pytest.mark.parametrize("state", [None, *DeliveryState])
@pytest.mark.parametrize("limit", [1, 4, 100])
def test_list_page_has_each_delivery_once_newest_first(filled: str, state: DeliveryState | None, limit: int) -> None:
    condition, values = ("", ()) if state is None else (" and state = ?", (state.value,))
    select = (
        f"select event_id from delivery where webhook_id = 'first'{condition} order by created_at desc, event_id desc"
    )
    expected = [event_id for (event_id,) in sql(filled, select, *values)]
    found: list[str] = []
    before: DeliveryCursor | None = None
    while page := read(filled, deliveries.list_page("first", state, before, limit)):
        found += [each.event_id for each in page]
        before = page[-1].cursor
    assert found == expected
    assert len(found) > 3


@pytest.mark.parametrize("webhook_id", [None, "first"])
@pytest.mark.parametrize("limit", [1, 4, 100])
def test_dead_keys_are_complete_in_portions(filled: str, webhook_id: str | None, limit: int) -> None:
    rows = sql(filled, "select pcid, rev, part, webhook_id from delivery where state = 'dead'")
    expected = sorted(row for row in rows if webhook_id in (None, row[3]))
    found, after = [], BEFORE_ALL
    while keys := write(filled, deliveries.dead_keys(webhook_id, after, limit)):
        found += keys
        after = keys[-1]
    assert found == expected
    assert found
