"""Queries for the outbox of events (transactional outbox).

A change of a contract writes its event to the outbox in the same transaction (`contracts.event`). `fan_out` turns an
event into one delivery per interested webhook and namespace (`ccp.server.storage.queries.deliveries`). Any number of
processes may run it concurrently.

Locks are taken in one order: vehicles sorted by PCID, the change counter of webhooks, a webhook, deliveries by key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias
from uuid import uuid4

from ccp.ids import EMAID, PCID, Namespace
from ccp.server.domain.event_payloads import contract_members
from ccp.server.domain.subscriptions import (
    ROOT_KINDS,
    EventKind,
    Subscriber,
    Webhook,
    matching_root_webhooks,
    matching_webhooks,
    owner_key,
)
from ccp.server.storage.engine.query import Query, Row, read_committed, retryable
from ccp.server.storage.queries import subscribers
from ccp.server.storage.queries.change_counters import ChangeCounter
from ccp.server.storage.queries.contracts import event_at, instant, microseconds
from ccp.server.storage.queries.deliveries import COLUMNS, DeliveryState
from ccp.server.storage.queries.root_events import INSERT as INSERT_ROOT_EVENT
from ccp.server.storage.queries.vehicle_lock import STAMP

KINDS: Final = "('" + "', '".join(EventKind) + "')"
"""SQL list of the event kinds that this release knows."""


def hold() -> Query[None]:
    """Keep `fan_out` from taking events out of the outbox until the end of the transaction."""
    yield "select number from change_count where topic = $1 for update", (ChangeCounter.WEBHOOKS.value,)


@retryable
def fan_out(now: datetime, limit: int = 200) -> Query[int]:
    """Move events from the outbox to the deliveries of the webhooks that subscribe to them, oldest first.

    Events of kinds that only a newer release knows stay for its processes. Ownership is that of this moment. An event
    of a trust anchor may have any number of webhooks: a call serves a page of them, and the event stays in the outbox
    until the last page. Returns how many events were handled, `limit` if one of them stays; 0 also if another process
    is fanning out at the moment.
    """
    # The lock serialises fan-out, so that no process waits for another's rows, and orders it with changes of webhooks.
    lock = "select number from change_count where topic = $1 for update skip locked"
    if not (yield lock, (ChangeCounter.WEBHOOKS.value,)):
        return 0
    rows = yield (
        "delete from outbox where (pcid, rev) in "  # noqa: S608  constants
        f"(select pcid, rev from outbox where kind in {KINDS} order by created_at limit $1) "
        "returning pcid, rev, kind, emaid, payload, created_at",
        (limit,),
    )
    if not rows:
        return 0
    finished = True
    owned: dict[tuple[str, str], Sequence[Subscriber]] = {}
    for row in sorted(map(tuple, rows)):
        _, _, kind, emaid, *_ = row
        if kind in ROOT_KINDS:
            finished &= yield from _add_root_deliveries(row, now)
            continue
        owner = owner_key(EventKind(kind), EMAID(emaid), PCID(row[0]))
        if owner not in owned:
            owned[owner] = yield from subscribers.list_by_owner(*owner)
        yield from _add_deliveries(row, owned[owner], now)
    return len(rows) if finished else limit


def _add_deliveries(row: Row, subscribed: Sequence[Subscriber], now: datetime) -> Query[None]:
    pcid, _, kind, emaid, text, _ = row
    event = json.loads(text)
    listeners = matching_webhooks(subscribed, EventKind(kind), EMAID(emaid), PCID(pcid))
    if not listeners:
        return
    # A row of the previous release has no namespaces.
    for part, namespace in enumerate(event.get("namespaces") or [Namespace.ISO2.value]):
        payload: dict[str, Any] = {"emaid": emaid, "pcid": pcid, **event.get("members", {})}
        if kind not in _GONE:
            payload |= yield from _contract_payload(pcid, emaid, namespace)
        yield from _insert(row, part, listeners, namespace, payload, now)


_GONE: Final = frozenset(
    {
        EventKind.DELETED,
        EventKind.DELETED_SENT,
        EventKind.PROVISIONING_UPDATED,
        EventKind.PROVISIONING_DELETED,
        EventKind.FACTORY_RESET,
    }
)
"""Events of contracts that are gone. A contract with the same EMAID that was published since is not described."""


_ROOT_PAGE: Final = 100  # Webhooks; each gets a row.


def _add_root_deliveries(row: Row, now: datetime) -> Query[bool]:
    """Serve the next page of webhooks. Returns whether it was the last one; otherwise the event stays."""
    pcid, rev, kind, _, text, created_at = row
    event = json.loads(text)
    found = yield from subscribers.list_by_event(kind, event.get("after", ""), _ROOT_PAGE)
    listeners = matching_root_webhooks(found, EventKind(kind))
    yield from _insert(row, 0, listeners, event["namespace"] or "", event["members"], now)
    if len(found) < _ROOT_PAGE:
        return True
    event["after"] = found[-1].webhook.id
    yield INSERT_ROOT_EVENT, (pcid, rev, kind, json.dumps(event), created_at)
    return False


def _insert(
    row: Row,
    part: int,
    listeners: Iterable[tuple[Webhook, str]],
    namespace: str,
    payload: dict[str, Any],
    now: datetime,
) -> Query[None]:
    pcid, rev, _, emaid, _, created_at = row
    for listener, name in listeners:
        values = (
            pcid, rev, part, listener.id, str(uuid4()), name, emaid, namespace, json.dumps(payload), created_at,
            microseconds(now), microseconds(now), 0, DeliveryState.WAITING.value, None, None, None,
        )  # fmt: skip
        yield _INSERT, values


# The key is taken only if a vehicle was erased and registered again, because its revisions then restart.
_INSERT: Final = f"""
insert into delivery ({COLUMNS})
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
on conflict (pcid, rev, part, webhook_id) do update set event_id = excluded.event_id, kind = excluded.kind,
    emaid = excluded.emaid, namespace = excluded.namespace, payload = excluded.payload,
    created_at = excluded.created_at, queued_at = excluded.queued_at, lease_until = excluded.lease_until, attempts = 0,
    state = 'waiting', last_status = null, last_error = null, finished_at = null
"""  # noqa: S608  constants


def _contract_payload(pcid: str, emaid: str, namespace: str) -> Query[dict[str, str]]:
    """The members that describe the contract, as it is now; none if it is gone."""
    rows = yield (
        "select certificate, root_dn, root_fingerprint from contract where pcid = $1 and namespace = $2 and emaid = $3 "
        "order by updated_at desc, root_fingerprint limit 1",
        (pcid, namespace, emaid),
    )
    if not rows:
        return {}
    certificate, root_dn, root_fingerprint = rows[0]
    return contract_members(bytes(certificate), root_dn, root_fingerprint)


@read_committed
def has_new_events() -> Query[bool]:
    """Whether the outbox holds an event for `fan_out`."""
    rows = yield f"select 1 from outbox where kind in {KINDS} limit 1", ()  # noqa: S608  constants
    return bool(rows)


# --- Events for providers ----------------------------------------------------------------------------------------

ProviderEvent: TypeAlias = tuple[EventKind, EMAID, PCID, str, datetime]
"""Kind, contract, vehicle, namespace and time."""


@retryable
def store_events(events: Sequence[ProviderEvent]) -> Query[None]:
    """Write events that belong to no change of a contract, in a transaction of their own."""
    yield from add_events(events)


_NEXT_REVISION: Final = f"""
update vehicle set rev = rev + 1, stamped_at = {STAMP.format(now="$2")} where pcid = $1 returning rev, stamped_at
"""  # noqa: S608  constants


def add_events(events: Iterable[ProviderEvent]) -> Query[None]:
    """Write events within a transaction that holds no vehicle yet, or only this one. Erased vehicles are skipped."""
    for kind, emaid, pcid, namespace, created_at in sorted(events, key=lambda event: event[2]):
        rows = yield _NEXT_REVISION, (pcid, microseconds(created_at))
        if rows:
            yield event_at(kind, emaid, pcid, rows[0][0], instant(rows[0][1]), [namespace])
