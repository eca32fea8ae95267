"""Queries of outbox and deliveries on both engines."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ccp.ids import EMAID, PCID, Namespace
from ccp.server.domain.parties import Party, PartyRole
from ccp.server.domain.subscriptions import EventKind, Webhook
from ccp.server.storage.queries import contracts, deliveries, delivery_queue, erasure, outbox, parties, webhooks
from ccp.server.storage.queries.deliveries import Delivery, DeliveryState
from ccp.server.storage.queries.delivery_queue import AttemptOutcome
from tests.databases import Server, sql
from tests.server.events.dead_deliveries import drop_dead, replay_dead
from tests.server.events.receiver import webhook
from tests.server.storage.made import (
    AT,
    CAR,
    DAY,
    FIRST,
    OTHER_CAR,
    OTHER_ROOT,
    ROOT,
    SECOND,
    SECOND_CONTRACT,
    THIRD,
    new_database,
    read,
    variant,
    write,
)
from tests.world import party

OEM = party("oem", PartyRole.OEM, wmis="WEX")
EMSP = party("emsp", PartyRole.EMSP, providers="DEEXA NLEXB")
HOUR = timedelta(hours=1)
ONE = "http://one.example/"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with a car maker and an eMSP."""
    if request.param == "sqlite":
        made = new_database(tmp_path)
    else:
        server: Server = request.getfixturevalue("postgres")
        made = server.emptied()
    write(made, *(parties.add(each, "hash", AT) for each in (OEM, EMSP)))
    return made


def subscribed(url: str, *args: str, **more: object) -> Webhook:
    made = webhook(ONE, *args, **more)
    write(url, webhooks.put(made))
    return made


def publish(url: str, emaid: EMAID = FIRST, pcid: PCID = CAR, at: datetime = AT, **more: object) -> None:
    write(url, contracts.publish(variant(emaid, pcid, **more), at))


def waiting(url: str, hook: Webhook) -> list[Delivery]:
    """What waits for a webhook, the oldest first."""
    return list(reversed(read(url, deliveries.list_page(hook.id, DeliveryState.WAITING))))


def claim(url: str, hook: Webhook, at: datetime = AT, limit: int = 10) -> list[Delivery]:
    found: list[Delivery] = write(url, delivery_queue.lease(hook.id, at, at + 20 * SECOND, limit))
    return found


# --- Fan-out ---------------------------------------------------------------------------------------------------------


def test_fan_out_removes_events_without_subscribers(url: str) -> None:
    publish(url)
    assert write(url, outbox.fan_out(AT)) == 1
    assert sql(url, "select count(*) from outbox") == sql(url, "select count(*) from delivery") == [(0,)]
    assert write(url, outbox.fan_out(AT)) == 0


@pytest.mark.parametrize(
    ("owner", "more", "notified"),
    [
        (OEM, {}, True),
        (OEM, {"wmis": ("WEX",)}, True),
        (replace(OEM, wmis=frozenset({"WEX", "WXB"})), {"wmis": ("WXB",)}, False),
        (replace(OEM, wmis=frozenset({"WXB"})), {}, False),
        (replace(OEM, wmis=frozenset({"WXB"})), {"wmis": ("WEX",)}, False),
        (replace(OEM, enabled=False), {}, False),
        (replace(OEM, roles=frozenset({PartyRole.CPO})), {}, False),
        (OEM, {"enabled": False}, False),
        (OEM, {"events": ("oem.contract.deleted",)}, False),
        (EMSP, {}, False),
    ],
    ids=[
        "own", "filter", "other filter", "not owned", "not owned any more", "disabled party", "no maker",
        "disabled webhook", "other event", "provider",
    ],
)  # fmt: skip
def test_fan_out_selects_by_subscription_and_ownership(
    url: str, owner: Party, more: dict[str, object], notified: bool
) -> None:
    hook = subscribed(url, owner.client_id, **more)
    before = {"oem": OEM, "emsp": EMSP}[owner.client_id]
    publish(url)
    if owner != before:
        write(url, parties.update(before, owner))
    write(url, outbox.fan_out(AT))
    assert [each.kind for each in waiting(url, hook)] == ["oem.contract.created"] * notified


def test_fan_out_uses_the_subscribed_event_name(url: str) -> None:
    new = subscribed(url, "emsp", "emsp.contract.delivered.to.oem", "mo.contract.delivered.to.oem")
    old = subscribed(url, "emsp", "mo.contract.delivered.to.oem", provider_ids=("DEEXA",))
    other = subscribed(url, "emsp", "mo.contract.delivered.to.oem", provider_ids=("NLEXB",))
    publish(url)
    events = [(EventKind.DELIVERED, FIRST, CAR, Namespace.ISO20, AT + SECOND)]
    write(url, outbox.store_events(events), outbox.fan_out(AT))
    assert [each.kind for each in waiting(url, new)] == ["emsp.contract.delivered.to.oem"]
    (delivery,) = waiting(url, old)
    assert (delivery.kind, delivery.namespace) == ("mo.contract.delivered.to.oem", Namespace.ISO20)
    assert (delivery.payload, delivery.created_at) == ({"emaid": FIRST, "pcid": CAR}, AT + SECOND)
    assert waiting(url, other) == []


def test_event_payload_describes_the_contract(url: str) -> None:
    hook = subscribed(url)
    publish(url, root_dn="CN=V2G Root\\, Example, DC=V2G, O=Example, C=DE")
    write(url, outbox.fan_out(AT))
    (delivery,) = waiting(url, hook)
    assert delivery.payload == {
        "emaid": FIRST,
        "pcid": CAR,
        "contractCert": "Y2VydGlmaWNhdGU=",
        "cpsSignerRootCommonName": "V2G Root, Example",
        "cpsSignerRootFingerprint": ROOT,
    }


def test_event_payload_of_a_deleted_contract_has_no_certificate(url: str) -> None:
    hook = subscribed(url)
    publish(url)
    write(url, contracts.withdraw(FIRST, AT + SECOND), outbox.fan_out(AT))
    assert [(each.kind, each.payload) for each in waiting(url, hook)] == [
        ("oem.contract.created", {"emaid": FIRST, "pcid": CAR}),
        ("oem.contract.deleted", {"emaid": FIRST, "pcid": CAR}),
    ]


def test_contract_event_of_a_deletion_is_sent_per_namespace(url: str) -> None:
    hook = subscribed(url, "oem", "oem.contract.deleted")
    publish(url)
    publish(url, root_fingerprint=OTHER_ROOT)
    publish(url, namespace=Namespace.ISO20)
    write(url, contracts.withdraw(FIRST, AT), outbox.fan_out(AT))
    found = waiting(url, hook)
    assert sorted((each.part, each.namespace) for each in found) == [(0, Namespace.ISO20), (1, Namespace.ISO2)]
    assert len({each.event_id for each in found}) == 2


def test_event_of_an_earlier_release_counts_as_iso2(url: str) -> None:
    hook = subscribed(url)
    publish(url, namespace=Namespace.ISO20)
    sql(url, "update outbox set payload = ?", json.dumps({"emaid": FIRST, "pcid": CAR}))
    write(url, outbox.fan_out(AT))
    assert [each.namespace for each in waiting(url, hook)] == [Namespace.ISO2]


# --- Order -----------------------------------------------------------------------------------------------------------


def test_lease_orders_events_per_vehicle(url: str) -> None:
    hook = subscribed(url)
    for number in range(3):
        publish(url, at=AT + number * SECOND)
        publish(url, SECOND_CONTRACT, OTHER_CAR, at=AT + number * SECOND)
    write(url, contracts.withdraw(FIRST, AT), outbox.fan_out(AT))
    for rev in (1, 2, 3):
        claimed = claim(url, hook)
        assert [(each.pcid, each.rev) for each in claimed] == [(CAR, rev), (OTHER_CAR, rev)]
        assert claim(url, hook) == []
        for each in claimed:
            assert write(url, delivery_queue.ack(each, AttemptOutcome.DELIVERED, AT, status=200))
    assert [(each.pcid, each.rev) for each in claim(url, hook)] == [(CAR, 4)]


def test_lease_waits_for_earlier_events_in_the_outbox(url: str) -> None:
    """The later event may have the earlier time, if the release before wrote it."""
    hook = subscribed(url)
    publish(url)
    publish(url)
    sql(url, "update outbox set created_at = ? where rev = 1", contracts.microseconds(AT + HOUR))
    write(url, outbox.fan_out(AT, limit=1))
    assert [each.rev for each in waiting(url, hook)] == [2]
    assert claim(url, hook) == []
    write(url, outbox.fan_out(AT, limit=1))
    assert [each.rev for each in claim(url, hook)] == [1]


def test_lease_waits_for_retries_of_the_same_vehicle_only(url: str) -> None:
    hook, other_hook = subscribed(url), subscribed(url)
    publish(url)
    publish(url)
    publish(url, THIRD, OTHER_CAR)
    write(url, outbox.fan_out(AT))
    first, _ = claim(url, hook)
    assert write(url, delivery_queue.ack(first, AttemptOutcome.FAILED, AT, status=500, error="Oh.", retry_at=AT + HOUR))
    assert claim(url, hook, AT + 10 * SECOND) == []
    assert [(each.pcid, each.rev) for each in claim(url, other_hook)] == [(CAR, 1), (OTHER_CAR, 1)]
    (again,) = [each for each in claim(url, hook, AT + HOUR) if each.pcid == CAR]
    assert (again.event_id, again.rev, again.attempts) == (first.event_id, 1, 2)
    assert (again.last_status, again.last_error, again.payload) == (500, "Oh.", first.payload)


def test_ack_after_an_expired_lease_changes_nothing(url: str) -> None:
    hook = subscribed(url)
    publish(url)
    write(url, outbox.fan_out(AT))
    (late,) = claim(url, hook)
    assert claim(url, hook, AT + 19 * SECOND) == []
    (now,) = claim(url, hook, AT + 20 * SECOND)
    assert (now.event_id, now.attempts) == (late.event_id, 2)
    assert not write(url, delivery_queue.ack(late, AttemptOutcome.REJECTED, AT + 21 * SECOND, status=400))
    assert [each.state for each in read(url, deliveries.find(now.event_id))] == [DeliveryState.WAITING]
    assert write(url, delivery_queue.ack(now, AttemptOutcome.DELIVERED, AT + 21 * SECOND, status=204))
    assert not write(url, delivery_queue.ack(now, AttemptOutcome.DELIVERED, AT + 21 * SECOND, status=204)), "once"


def test_nack_does_not_count_as_an_attempt(url: str) -> None:
    hook = subscribed(url)
    publish(url)
    write(url, outbox.fan_out(AT))
    (claimed,) = claim(url, hook)
    write(url, delivery_queue.nack(claimed, AT + SECOND))
    assert [each.attempts for each in claim(url, hook, AT + SECOND)] == [1]


def test_lease_skips_disabled_and_removed_webhooks(url: str) -> None:
    hook = subscribed(url)
    publish(url)
    write(url, outbox.fan_out(AT), webhooks.put(replace(hook, enabled=False)))
    assert claim(url, hook) == []
    assert len(waiting(url, hook)) == 1
    assert write(url, webhooks.remove(hook.id)) is True
    assert sql(url, "select count(*) from delivery") == [(0,)]
    assert claim(url, hook) == []
    assert write(url, webhooks.remove(hook.id)) is False


# --- The end ---------------------------------------------------------------------------------------------------------


def test_deliveries_that_are_dead_are_replayed_or_dropped(url: str) -> None:
    hook, other = subscribed(url), subscribed(url)
    publish(url, at=AT - SECOND)
    publish(url)
    write(url, outbox.fan_out(AT))
    ids = []
    for _ in range(2):
        (each,) = claim(url, hook)
        ids.append(each.event_id)
        assert write(url, delivery_queue.ack(each, AttemptOutcome.REJECTED, AT, status=409, error="no"))
    assert read(url, deliveries.list_dead(10, other.id)) == []
    assert [each.event_id for each in reversed(read(url, deliveries.list_dead(10, hook.id)))] == ids
    assert write(url, replay_dead(AT + DAY, webhook_id=other.id)) == 0
    assert write(url, replay_dead(AT + DAY, event_id=ids[1])) == 1
    (again,) = claim(url, hook, AT + DAY)
    assert (again.event_id, again.attempts, again.created_at) == (ids[1], 1, AT)
    assert write(url, drop_dead(event_id=ids[1])) == 0, "it waits"
    assert write(url, drop_dead(webhook_id=hook.id)) == 1
    assert [each.event_id for each in read(url, deliveries.list_page(hook.id))] == [ids[1]]


def test_deliveries_that_are_old_are_removed_by_expire_and_purge(url: str) -> None:
    hook = subscribed(url)
    publish(url)
    publish(url, THIRD, OTHER_CAR)
    write(url, outbox.fan_out(AT))
    done = claim(url, hook, limit=1)[0]
    write(url, delivery_queue.ack(done, AttemptOutcome.DELIVERED, AT, status=200))
    assert write(url, delivery_queue.expire(AT, AT, "Too long.")) == 0
    assert write(url, delivery_queue.expire(AT + SECOND, AT + DAY, "Too long.")) == 1
    (dead,) = read(url, deliveries.list_dead(10))
    assert (dead.last_error, dead.last_status, dead.finished_at) == ("Too long.", None, AT + DAY)
    # Of one that was replayed the time begins anew.
    write(url, replay_dead(AT + DAY, event_id=dead.event_id))
    assert write(url, delivery_queue.expire(AT + DAY, AT + DAY, "Too long.")) == 0
    assert write(url, deliveries.purge(AT)) == 0
    assert write(url, deliveries.purge(AT + SECOND)) == 1
    assert [each.event_id for each in read(url, deliveries.list_page(hook.id))] == [dead.event_id]


def test_backlog_counts_events_by_state(url: str) -> None:
    hook = subscribed(url)
    publish(url)
    publish(url, THIRD, OTHER_CAR)
    write(url, outbox.fan_out(AT, limit=1))
    (each,) = claim(url, hook)
    assert read(url, deliveries.backlog()) == deliveries.Backlog(1, 1, 0, AT)
    write(url, delivery_queue.ack(each, AttemptOutcome.GIVEN_UP, AT, error="no"))
    assert read(url, deliveries.backlog()) == deliveries.Backlog(1, 0, 1, None)


# --- Telling the provider --------------------------------------------------------------------------------------------


def test_ack_notifies_the_provider_once_per_event(url: str) -> None:
    hooks = [subscribed(url), subscribed(url)]
    publish(url)
    write(url, outbox.fan_out(AT))
    for hook in hooks:
        (each,) = claim(url, hook)
        done = delivery_queue.ack(
            each, AttemptOutcome.DELIVERED, AT + SECOND, status=200, notify=EventKind.CREATED_SENT
        )
        assert write(url, done)
    rows = sql(url, "select rev, kind, emaid, payload, created_at from outbox")
    payload = json.dumps({"emaid": FIRST, "pcid": CAR, "namespaces": [Namespace.ISO2]})
    assert rows == [(2, EventKind.CREATED_SENT, FIRST, payload, contracts.microseconds(AT + SECOND))]
    assert sql(url, "select rev from vehicle where pcid = ?", CAR) == [(2,)]


def test_ack_without_lease_notifies_nobody(url: str) -> None:
    hook = subscribed(url)
    publish(url)
    write(url, outbox.fan_out(AT))
    (late,) = claim(url, hook)
    claim(url, hook, AT + HOUR)
    assert not write(
        url, delivery_queue.ack(late, AttemptOutcome.REJECTED, AT + HOUR, status=400, notify=EventKind.REJECTED)
    )
    assert sql(url, "select count(*) from outbox") == [(0,)]
    assert sql(url, "select rev from vehicle where pcid = ?", CAR) == [(1,)]


# --- Erasure ---------------------------------------------------------------------------------------------------------


def test_erasure_removes_pending_events_except_deletions(url: str) -> None:
    hook = subscribed(url)
    publish(url)
    publish(url, SECOND_CONTRACT, OTHER_CAR)
    write(url, outbox.fan_out(AT))
    for each in claim(url, hook):
        write(url, delivery_queue.ack(each, AttemptOutcome.DELIVERED, AT, status=200))
    publish(url)
    write(url, contracts.withdraw(FIRST, AT), outbox.fan_out(AT))
    erased = write(url, erasure.erase(CAR, (), AT, "cli:test", notify=True))
    assert (erased.events, erased.waiting, erased.vehicle) == (2, 1, False)
    assert [each.kind for each in waiting(url, hook)] == ["oem.contract.deleted"]
    erased = write(url, erasure.erase(CAR, (), AT, "cli:test", notify=False))
    assert (erased.events, erased.waiting, erased.vehicle) == (1, 0, True)
    assert sql(url, "select distinct pcid from delivery") == [(OTHER_CAR,)]


def test_events_do_not_recreate_an_erased_vehicle(url: str) -> None:
    hook = subscribed(url)
    publish(url)
    write(url, outbox.fan_out(AT))
    (each,) = claim(url, hook)
    write(url, erasure.erase(CAR, (), AT, "cli:test", notify=False))
    assert not write(
        url, delivery_queue.ack(each, AttemptOutcome.DELIVERED, AT, status=200, notify=EventKind.CREATED_SENT)
    )
    write(url, outbox.store_events([(EventKind.DELIVERED, FIRST, CAR, Namespace.ISO2, AT)]))
    assert sql(url, "select count(*) from vehicle") == sql(url, "select count(*) from outbox") == [(0,)]


def test_events_of_a_recreated_vehicle_are_sent(url: str) -> None:
    hook = subscribed(url)
    publish(url)
    write(url, outbox.fan_out(AT))
    (each,) = claim(url, hook)
    write(url, delivery_queue.ack(each, AttemptOutcome.DELIVERED, AT, status=200))
    # As after a restore of an older backup: the history is there, the vehicle's number is not.
    sql(url, "update vehicle set rev = 0")
    publish(url)
    write(url, outbox.fan_out(AT + SECOND))
    (anew,) = claim(url, hook, AT + SECOND)
    assert (anew.rev, anew.attempts, anew.finished_at) == (1, 1, None)
    assert anew.event_id != each.event_id
