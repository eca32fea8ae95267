"""Queries for subscriptions to other systems, and for announcements of peers, on every engine."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from ccp.ids import EMAID, PCID
from ccp.server.storage.queries import audit, change_counters, erasure, subscriptions
from ccp.server.storage.queries.change_counters import ChangeCounter
from ccp.server.storage.queries.subscriptions import Subscription
from tests.server.storage.made import AT, read, write

PENDING = Subscription("id-1", "rcp", "https://rcp.example/v1/webhook/endpoints", None, None, (), AT, AT)


def counted(url: str) -> int:
    return read(url, change_counters.read_all()).get(ChangeCounter.SUBSCRIPTIONS, 0)


def test_subscription_is_stored_once_for_a_source_and_counted(url: str) -> None:
    assert write(url, subscriptions.ensure(PENDING)) == PENDING
    assert counted(url) == 1
    assert write(url, subscriptions.ensure(replace(PENDING, id="id-2"))) == PENDING
    accepted = replace(
        PENDING,
        endpoint_id="hook",
        secret="hidden-key",
        events=("root.cert.added",),
        updated_at=AT + timedelta(seconds=1),
    )
    write(url, subscriptions.put(accepted))
    peer = replace(PENDING, id="id-3", source="peer:pool-b")
    write(url, subscriptions.ensure(peer))
    assert read(url, subscriptions.list_all()) == [peer, accepted]
    assert (peer.peer, accepted.peer) == ("pool-b", None)
    before = counted(url)
    write(url, subscriptions.remove("id-3"))
    assert read(url, subscriptions.find("peer:pool-b")) is None
    assert counted(url) == before + 1
    assert "hidden-key" not in repr(accepted)


def test_erasure_of_a_vehicle_clears_the_announcements_of_peers(url: str) -> None:
    write(url, change_counters.bump_and_log(ChangeCounter.NEGATIVES, '[["pool-b", "WEX0TEST000000001"]]'))
    write(url, change_counters.bump_and_log(ChangeCounter.PARTIES, "cpo"))
    write(url, erasure.erase(EMAID("DEEXAE00000001"), set(), AT, "cli:test", notify=False))
    assert len(read(url, change_counters.log_entries(ChangeCounter.NEGATIVES, 0, 10))) == 1
    write(url, erasure.erase(PCID("WEX0TEST000000001"), set(), AT, "cli:test", notify=False))
    assert read(url, change_counters.log_entries(ChangeCounter.NEGATIVES, 0, 10)) == []
    assert len(read(url, change_counters.log_entries(ChangeCounter.PARTIES, 0, 10))) == 1
    assert read(url, audit.count_outside_shards()) == 0
