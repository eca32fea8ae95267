"""Webhooks of every party at one receiver, and servers that share a database: who gets which event."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ccp.ids import PCID
from ccp.schemas import event_types
from ccp.server.sandbox.local_pool import loopback, running
from ccp.server.storage.queries import webhooks
from tests.databases import sql
from tests.server.events.receiver import Receiver, Sent, webhook
from tests.waiting import wait_until
from tests.world import Pool, parties

SETTINGS: dict[str, Any] = {
    "event_dispatch": True,
    "event_allow_http": True,
    "egress_allow_networks": ("127.0.0.0/8",),
    "event_timeout": 5,
    "event_retry_delay": 0.5,
    "event_check_interval": 0.2,
}
REFRESH = 0.1
EVERYONE = tuple(party.client_id for party in parties())


@contextmanager
def second_server(pool: Pool) -> Iterator[str]:
    """A second server on the pool's database, as another worker. Returns its address."""
    with loopback() as (listening, url), running(pool.settings, listening, refresh_interval=REFRESH):
        yield url


@contextmanager
def subscribed(pool: Pool, receiver: Receiver, names: Iterable[str], who: Iterable[str] = EVERYONE) -> Iterator[None]:
    """Webhooks of the parties for these events, each under the party's name as path."""
    made = [webhook(f"{receiver.url}/{client_id}", client_id, *names) for client_id in who]
    for each in made:
        pool.change(webhooks.put(each))
    try:
        yield
    finally:
        for each in made:
            pool.change(webhooks.remove(each.id))


def everything(*besides: str) -> list[str]:
    """Every event in the family emsp.…, without some."""
    current = (*event_types.OEM, *event_types.EMSP, *event_types.ROOT)
    return [name for name in current if name not in besides]


def settle(pool: Pool) -> None:
    """Wait until every event has been delivered."""
    waiting = "select (select count(*) from outbox), (select count(*) from delivery where state = 'waiting')"
    wait_until(lambda: sql(pool.settings.database, waiting) == [(0, 0)])


def about(pcid: PCID, receiver: Receiver) -> Counter[tuple[str, str]]:
    """Who got which events of a vehicle, how often: path and event."""
    return Counter(
        (sent.path[1:], sent.kind) for sent in receiver.received if sent.event["payload"].get("pcid") == pcid
    )


def roots(fingerprint: str, receiver: Receiver) -> list[Sent]:
    """The events of a root, in order of arrival."""
    return [sent for sent in receiver.received if sent.event["payload"].get("fingerprintSHA256") == fingerprint]
