"""Questions about subscriptions, and about the events on their way to them.

An event begins as a row of the outbox, written with the change it tells of (`contracts.event`). `fan_out` makes a
delivery of it for each webhook that is to be told, `lease` leases deliveries to whoever sends them, `ack` says
what came of one. Any number of processes may do this at the same time.

Locks are taken in one order: vehicles sorted by PCID, the number of webhooks' changes, a webhook, deliveries by key.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, TypeAlias
from uuid import uuid4

from ccp.ids import EMAID, PCID, Namespace
from ccp.server.domain.subscriptions import EventKind, Subscriber, Webhook, owner_key, wanted
from ccp.server.storage.engine.query import Query, Row, long_read, read_committed, retryable
from ccp.server.storage.queries import change_counters, subscribers, unknown_values
from ccp.server.storage.queries.change_counters import ChangeCounter
from ccp.server.storage.queries.contracts import event_at, instant, microseconds
from ccp.server.storage.queries.subscribers import WEBHOOK_COLUMNS, webhook_of
from ccp.server.storage.queries.vehicle_lock import STAMP
from ccp.x509.names import parse_dn


class DeliveryState(StrEnum):
    """What became of a delivery. dead: rejected or given up; it can be replayed."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event for one webhook, in one namespace.

    rev: the event's, in which order a vehicle's events are told. part: which of the event's namespaces. event_id: a
    UUID, the same at each try. kind: the name that the subscriber knows. payload: as it is sent. created_at: of the
    change. due_at: when it is tried next, or until when somebody has leased it. attempts: begun so far.
    """

    pcid: PCID
    rev: int
    part: int
    webhook_id: str
    event_id: str
    kind: str
    emaid: EMAID
    namespace: str
    payload: dict[str, Any] = field(repr=False)
    created_at: datetime
    queued_at: datetime
    due_at: datetime
    attempts: int
    state: DeliveryState
    last_status: int | None
    last_error: str | None
    finished_at: datetime | None

    @property
    def key(self) -> tuple[str, int, int, str]:
        return self.pcid, self.rev, self.part, self.webhook_id

    @property
    def cursor(self) -> DeliveryCursor:
        """Where it stands in a list that is newest first, for the next page."""
        return self.created_at, self.event_id


DeliveryCursor: TypeAlias = tuple[datetime, str]


@dataclass(frozen=True, slots=True)
class Backlog:
    """outbox: events that nobody has looked at yet. oldest: when the oldest that waits began to."""

    outbox: int
    waiting: int
    dead: int
    oldest: datetime | None


# --- Webhooks --------------------------------------------------------------------------------------------------------


@read_committed
def list_webhooks(client_id: str) -> Query[list[Webhook]]:
    """Those of one party, oldest first."""
    select = f"select {WEBHOOK_COLUMNS} from webhook where client_id = $1 order by created_at, id"  # noqa: S608  ours
    rows = yield select, (client_id,)
    return [webhook_of(row) for row in rows]


@read_committed
def find_webhook(id: str) -> Query[Webhook | None]:
    if not id.isprintable():
        return None  # It cannot be one, and an engine may refuse it as a text.
    rows = yield f"select {WEBHOOK_COLUMNS} from webhook where id = $1", (id,)  # noqa: S608  columns are ours
    return webhook_of(rows[0]) if rows else None


def lock_webhooks() -> Query[None]:
    """From here to the end of the transaction no webhook changes but by it, and no event leaves the outbox."""
    yield change_counters.lock(ChangeCounter.WEBHOOKS)


def hold_outbox() -> Query[None]:
    """From here to the end of the transaction no event leaves the outbox by `fan_out`."""
    yield "select number from change_count where topic = $1 for update", (ChangeCounter.WEBHOOKS.value,)


def put_webhook(webhook: Webhook) -> Query[None]:
    """Store a webhook, new or in place of the one with its id."""
    yield from lock_webhooks()
    yield (
        f"insert into webhook ({WEBHOOK_COLUMNS}) "  # noqa: S608  columns are ours
        "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) "
        "on conflict (id) do update set client_id = excluded.client_id, url = excluded.url, "
        "description = excluded.description, events = excluded.events, wmis = excluded.wmis, "
        "provider_ids = excluded.provider_ids, metadata = excluded.metadata, api_version = excluded.api_version, "
        "enabled = excluded.enabled, secret = excluded.secret, updated_at = excluded.updated_at",
        (
            webhook.id, webhook.client_id, webhook.url, webhook.description, json.dumps(webhook.events),
            json.dumps(webhook.wmis), json.dumps(webhook.provider_ids), json.dumps(webhook.metadata),
            webhook.api_version, webhook.enabled, webhook.secret, microseconds(webhook.created_at),
            microseconds(webhook.updated_at),
        ),
    )  # fmt: skip
    yield from change_counters.bump_and_log(ChangeCounter.WEBHOOKS, webhook.id)


def remove_webhook(id: str) -> Query[bool]:
    """Remove a webhook with all its deliveries, those that wait too. Returns whether there was one."""
    yield from lock_webhooks()
    rows = yield "delete from webhook where id = $1 returning id", (id,)
    yield "delete from delivery where webhook_id = $1", (id,)
    if rows:
        yield from change_counters.bump_and_log(ChangeCounter.WEBHOOKS, id)
    return bool(rows)


@retryable
def remove_deliveries(webhook_id: str, limit: int) -> Query[int]:
    """Remove deliveries to a webhook, the oldest first, whatever their state. Returns how many."""
    rows = yield (
        "delete from delivery where (pcid, rev, part, webhook_id) in (select pcid, rev, part, webhook_id from delivery "
        "where webhook_id = $1 order by created_at limit $2) returning rev",
        (webhook_id, limit),
    )
    return len(rows)


# --- Looking at deliveries -------------------------------------------------------------------------------------------

_KINDS: Final = "('" + "', '".join(EventKind) + "')"
_DELIVERY: Final = (
    "pcid, rev, part, webhook_id, event_id, kind, emaid, namespace, payload, created_at, queued_at, lease_until, "
    "attempts, state, last_status, last_error, finished_at"
)
_BY_KEY: Final = "pcid = $1 and rev = $2 and part = $3 and webhook_id = $4"


@long_read
def list_deliveries(
    webhook_id: str | None, state: DeliveryState | None = None, before: DeliveryCursor | None = None, limit: int = 100
) -> Query[list[Delivery]]:
    """A webhook's deliveries, or everybody's, newest first, from the one after `before` (see `Delivery.cursor`)."""
    conditions, parameters = ["1 = 1"], []

    def add(condition: str, *values: Any) -> None:
        for value in values:
            parameters.append(value)
            condition = condition.replace("?", f"${len(parameters)}", 1)
        conditions.append(condition)

    if webhook_id is not None:
        add("webhook_id = ?", webhook_id)
    if state is not None:
        add("state = ?", state.value)
    if before is not None:
        at = microseconds(before[0])
        add("(created_at < ? or (created_at = ? and event_id < ?))", at, at, before[1])
    parameters.append(limit)
    rows = yield (
        f"select {_DELIVERY} from delivery where {' and '.join(conditions)} "  # noqa: S608  words are ours
        f"order by created_at desc, event_id desc limit ${len(parameters)}",
        tuple(parameters),
    )
    return list(_known(rows))


@read_committed
def find_delivery(event_id: str) -> Query[list[Delivery]]:
    """The delivery with an event id: one or none."""
    if not event_id.isprintable():
        return []  # As `find_webhook`.
    rows = yield f"select {_DELIVERY} from delivery where event_id = $1", (event_id,)  # noqa: S608  columns are ours
    return list(_known(rows))


def list_dead(limit: int, webhook_id: str | None = None) -> Query[list[Delivery]]:
    """Deliveries that were rejected or given up, newest first."""
    return list_deliveries(webhook_id, DeliveryState.DEAD, limit=limit)


@long_read
def backlog() -> Query[Backlog]:
    outbox = yield "select kind, count(*) from outbox group by kind", ()
    for kind, _ in outbox:
        unknown_values.known(EventKind, kind, "outbox.kind")
    waiting = yield "select count(*), min(queued_at) from delivery where state = 'waiting'", ()
    given_up = yield "select count(*) from delivery where state = 'dead'", ()
    oldest = waiting[0][1]
    return Backlog(
        sum(count for _, count in outbox), waiting[0][0], given_up[0][0], None if oldest is None else instant(oldest)
    )


@long_read
def backlog_by_webhook() -> Query[dict[str, Backlog]]:
    """The same by webhook, without the outbox; webhooks for which nothing waits and nothing is dead are left out."""
    rows = yield (
        "select webhook_id, sum(case when state = 'waiting' then 1 else 0 end), "
        "sum(case when state = 'dead' then 1 else 0 end), min(case when state = 'waiting' then queued_at end) "
        "from delivery where state in ('waiting', 'dead') group by webhook_id",
        (),
    )
    return {
        webhook_id: Backlog(0, int(waiting), int(list_dead), None if oldest is None else instant(oldest))
        for webhook_id, waiting, list_dead, oldest in rows
    }


def _known(rows: Iterable[Row]) -> Iterator[Delivery]:
    """Deliveries, without those in a state that only a newer release knows."""
    for row in rows:
        state = unknown_values.known(DeliveryState, row[13], "delivery.state", row[4])
        if state is not None:
            yield _delivery(row, state)


def _delivery(row: Row, state: DeliveryState) -> Delivery:
    (pcid, rev, part, webhook_id, event_id, kind, emaid, namespace, payload, created_at, queued_at, lease_until,
     attempts, _, last_status, last_error, finished_at) = row  # fmt: skip
    return Delivery(
        PCID(pcid),
        rev,
        part,
        webhook_id,
        event_id,
        kind,
        EMAID(emaid),
        namespace,
        json.loads(payload),
        instant(created_at),
        instant(queued_at),
        instant(lease_until),
        attempts,
        state,
        last_status,
        last_error,
        None if finished_at is None else instant(finished_at),
    )


# --- What an operator does with dead ones ----------------------------------------------------------------------------


def replay_dead(now: datetime, *, event_id: str | None = None, webhook_id: str | None = None) -> Query[int]:
    """Let dead deliveries wait again as if they had never been tried: one, those of a webhook, or all.

    Returns how many. The event id stays: a receiver that has it already can tell.
    """
    statement = """
    update delivery set state = 'waiting', attempts = 0, queued_at = $5, lease_until = $5, finished_at = null
    where {} and state = 'dead' returning rev
    """
    total = 0
    for key in (yield from _dead_keys(event_id, webhook_id)):
        total += len((yield statement.format(_BY_KEY), (*key, microseconds(now))))
    return total


def drop_dead(*, event_id: str | None = None, webhook_id: str | None = None) -> Query[int]:
    """Forget dead deliveries: one, those of a webhook, or all. Returns how many."""
    total = 0
    for key in (yield from _dead_keys(event_id, webhook_id)):
        total += len((yield f"delete from delivery where {_BY_KEY} and state = 'dead' returning rev", key))  # noqa: S608
    return total


def _dead_keys(event_id: str | None, webhook_id: str | None) -> Query[list[Row]]:
    """Keys of dead deliveries in the order in which they are locked."""
    rows = yield (
        "select pcid, rev, part, webhook_id from delivery where state = 'dead' "
        "and ($1 = '' or event_id = $1) and ($2 = '' or webhook_id = $2) order by pcid, rev, part, webhook_id",
        (event_id or "", webhook_id or ""),
    )
    return [tuple(row) for row in rows]


# --- On the way ------------------------------------------------------------------------------------------------------


@retryable
def fan_out(now: datetime, limit: int = 200) -> Query[int]:
    """Take events out of the outbox, oldest first, and put them to the webhooks that are to be told.

    Events of a kind that only a newer release knows are left to its processes.
    Who owns what is judged as it is registered now. Returns how many left the outbox; 0 too where another process does
    the same just now.
    """
    # One at a time, so that none waits for another's rows; a change of webhooks goes before or after.
    if not (
        yield "select number from change_count where topic = $1 for update skip locked", (ChangeCounter.WEBHOOKS.value,)
    ):
        return 0
    rows = yield (
        "delete from outbox where (pcid, rev) in "  # noqa: S608  kinds are ours
        f"(select pcid, rev from outbox where kind in {_KINDS} order by created_at limit $1) "
        "returning pcid, rev, kind, emaid, payload, created_at",
        (limit,),
    )
    if not rows:
        return 0
    owned: dict[tuple[str, str], Sequence[Subscriber]] = {}
    for row in sorted(map(tuple, rows)):
        _, _, kind, emaid, *_ = row
        owner = owner_key(EventKind(kind), EMAID(emaid), PCID(row[0]))
        if owner not in owned:
            owned[owner] = yield from subscribers.list_by_owner(*owner)
        yield from _put(row, owned[owner], now)
    return len(rows)


def _put(row: Row, subscribed: Sequence[Subscriber], now: datetime) -> Query[None]:
    pcid, rev, kind, emaid, text, created_at = row
    told = json.loads(text)
    listeners = wanted(subscribed, EventKind(kind), EMAID(emaid), PCID(pcid))
    if not listeners:
        return
    # A row that the release before has written does not say the namespace.
    for part, namespace in enumerate(told.get("namespaces") or [Namespace.ISO2.value]):
        payload: dict[str, Any] = {"emaid": emaid, "pcid": pcid}
        if told.get("contested"):
            payload["contested"] = True
        if kind in (EventKind.CREATED, EventKind.UPDATED):
            payload |= yield from _contract(pcid, emaid, namespace)
        for listener, name in listeners:
            values = (
                pcid, rev, part, listener.id, str(uuid4()), name, emaid, namespace, json.dumps(payload), created_at,
                microseconds(now), microseconds(now), 0, DeliveryState.WAITING.value, None, None, None,
            )  # fmt: skip
            yield _INSERT, values


# Where a vehicle was erased and came back, its revisions begin anew.
_INSERT: Final = f"""
insert into delivery ({_DELIVERY})
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
on conflict (pcid, rev, part, webhook_id) do update set event_id = excluded.event_id, kind = excluded.kind,
    emaid = excluded.emaid, namespace = excluded.namespace, payload = excluded.payload,
    created_at = excluded.created_at, queued_at = excluded.queued_at, lease_until = excluded.lease_until, attempts = 0,
    state = 'waiting', last_status = null, last_error = null, finished_at = null
"""  # noqa: S608  columns are ours


def _contract(pcid: str, emaid: str, namespace: str) -> Query[dict[str, str]]:
    """What is told of a contract beside its ids, as far as it is still there."""
    rows = yield (
        "select certificate, root_dn from contract where pcid = $1 and namespace = $2 and emaid = $3 "
        "order by updated_at desc, root_fingerprint limit 1",
        (pcid, namespace, emaid),
    )
    if not rows:
        return {}
    names = [value for kind, value in parse_dn(rows[0][1]) if kind == "CN"]
    said = {"contractCert": b64encode(bytes(rows[0][0])).decode()}
    return {**said, "cpsSignerRootCommonName": names[0]} if names else said


@read_committed
def has_new_events() -> Query[bool]:
    """Whether there is something in the outbox for `fan_out`."""
    rows = yield f"select 1 from outbox where kind in {_KINDS} limit 1", ()  # noqa: S608  kinds are ours
    return bool(rows)


@long_read
def scheduled_beyond(horizon: datetime, limit: int = 500) -> Query[list[Row]]:
    """Keys of deliveries that wait for a time later than that, in the order in which they are locked."""
    rows = yield (
        "select pcid, rev, part, webhook_id from delivery where state = 'waiting' and lease_until > $1 "
        "order by pcid, rev, part, webhook_id limit $2",
        (microseconds(horizon), limit),
    )
    return [tuple(row) for row in rows]


@retryable
def reschedule(keys: Sequence[Row], horizon: datetime, now: datetime) -> Query[int]:
    """Let deliveries be due that wait for longer than any lease or pause lasts: a clock had jumped ahead.

    keys: as `scheduled_beyond` has them. Returns how many.
    """
    statement = f"""
    update delivery set lease_until = $5, queued_at = case when queued_at > $5 then $5 else queued_at end
    where {_BY_KEY} and state = 'waiting' and lease_until > $6 returning rev
    """  # noqa: S608  words are ours
    total = 0
    for key in keys:
        total += len((yield statement, (*key, microseconds(now), microseconds(horizon))))
    return total


_CANDIDATES: Final = f"""
select d.pcid, d.rev, d.part from delivery d
where d.webhook_id = $1 and d.state = 'waiting' and d.lease_until <= $2
    and not exists (
        select 1 from delivery e where e.pcid = d.pcid and e.webhook_id = d.webhook_id and e.state = 'waiting'
            and (e.rev < d.rev or (e.rev = d.rev and e.part < d.part))
    )
    and not exists (select 1 from outbox o where o.pcid = d.pcid and o.rev < d.rev and o.kind in {_KINDS})
order by d.lease_until limit $3
"""  # noqa: S608  kinds are ours
_LEASE: Final = f"""
update delivery set lease_until = $5, attempts = attempts + 1
where {_BY_KEY} and state = 'waiting' and lease_until <= $6 returning {_DELIVERY}
"""  # noqa: S608  columns are ours


@retryable
def lease(webhook_id: str, now: datetime, until: datetime, limit: int) -> Query[list[Delivery]]:
    """Lease what is due for a webhook: at most one delivery of each vehicle, and none before its turn.

    A vehicle's turn is with what came first, be it that this still waits for this webhook, is leased, or has not left
    the outbox. until: nobody else has them until then. Returns nothing where the webhook is gone or disabled, or where
    another process claims for it just now.
    """
    rows = yield "select enabled from webhook where id = $1 for update skip locked", (webhook_id,)
    if not rows or not rows[0][0]:
        return []
    found = yield _CANDIDATES, (webhook_id, microseconds(now), limit)
    claimed: list[Delivery] = []
    for pcid, rev, part in sorted(map(tuple, found)):
        leased = yield _LEASE, (pcid, rev, part, webhook_id, microseconds(until), microseconds(now))
        claimed += _known(leased)
    return claimed


class AttemptOutcome(StrEnum):
    """What an attempt came to. failed: it is tried again; given up: it was, often enough."""

    DELIVERED = "delivered"
    REJECTED = "rejected"
    FAILED = "failed"
    GIVEN_UP = "given up"


_COMPLETE: Final = f"""
update delivery set state = $5, lease_until = $6, last_status = $7, last_error = $8, finished_at = $9
where {_BY_KEY} and attempts = $10 and lease_until = $11 returning rev
"""  # noqa: S608  words are ours


@retryable
def ack(
    delivery: Delivery,
    outcome: AttemptOutcome,
    now: datetime,
    *,
    status: int | None = None,
    error: str | None = None,
    retry_at: datetime | None = None,
    notify: EventKind | None = None,
) -> Query[bool]:
    """Say what an attempt came to, and to the contract's provider if it is to be told, in one transaction.

    delivery: as it was leased. retry_at: when a failed one is tried again. notify: the event for the provider; a
    success is told once, whichever of the maker's webhooks had it first. Returns False, and changes nothing, where the
    lease had run out and another process has it, or where it is gone.
    """
    if notify is not None:
        # As every event of a vehicle: its row is locked first. A vehicle that was erased is not made again.
        yield "select rev from vehicle where pcid = $1 for update", (delivery.pcid,)
    states = {AttemptOutcome.DELIVERED: DeliveryState.DELIVERED, AttemptOutcome.FAILED: DeliveryState.WAITING}
    state = states.get(outcome, DeliveryState.DEAD)
    due_at = retry_at if state is DeliveryState.WAITING and retry_at is not None else now
    finished = None if state is DeliveryState.WAITING else microseconds(now)
    done = yield _COMPLETE, (
        *delivery.key, state.value, microseconds(due_at), status, error, finished,
        delivery.attempts, microseconds(delivery.due_at),
    )  # fmt: skip
    if not done:
        return False
    if notify is not None and not (outcome is AttemptOutcome.DELIVERED and (yield from _had_by_another(delivery))):
        yield from add_events([(notify, delivery.emaid, delivery.pcid, delivery.namespace, now)])
    return True


def _had_by_another(delivery: Delivery) -> Query[bool]:
    rows = yield (
        "select 1 from delivery where pcid = $1 and rev = $2 and part = $3 and webhook_id <> $4 "
        "and state = 'delivered' limit 1",
        delivery.key,
    )
    return bool(rows)


ProviderEvent: TypeAlias = tuple[EventKind, EMAID, PCID, str, datetime]


@retryable
def store_events(told: Sequence[ProviderEvent]) -> Query[None]:
    """Events of nobody's change: kind, contract, vehicle, namespace and time of each."""
    yield from add_events(told)


_NEXT: Final = f"""
update vehicle set rev = rev + 1, stamped_at = {STAMP.format(now="$2")} where pcid = $1 returning rev, stamped_at
"""  # noqa: S608  words are ours


def add_events(told: Iterable[ProviderEvent]) -> Query[None]:
    """Part of a transaction that holds no vehicle yet, or just this one. A vehicle that was erased is passed over."""
    for kind, emaid, pcid, namespace, at in sorted(told, key=lambda each: each[2]):
        rows = yield _NEXT, (pcid, microseconds(at))
        if rows:
            yield event_at(kind, emaid, pcid, rows[0][0], instant(rows[0][1]), [namespace])


@retryable
def nack(delivery: Delivery, now: datetime) -> Query[None]:
    """Give a lease back that came to no attempt."""
    statement = f"""
    update delivery set lease_until = $5, attempts = attempts - 1
    where {_BY_KEY} and state = 'waiting' and attempts = $6 and lease_until = $7
    """  # noqa: S608  words are ours
    yield statement, (*delivery.key, microseconds(now), delivery.attempts, microseconds(delivery.due_at))


@retryable
def expire(before: datetime, now: datetime, error: str, limit: int = 500) -> Query[int]:
    """Let deliveries be dead that have waited since before then. Returns how many.

    error: said of those that were never tried. One that is on its way just now is still completed if it gets there.
    """
    rows = yield (
        "select pcid, rev, part, webhook_id from delivery where state = 'waiting' and queued_at < $1 "
        "order by pcid, rev, part, webhook_id limit $2",
        (microseconds(before), limit),
    )
    statement = f"""
    update delivery set state = 'dead', last_error = coalesce(last_error, $5), finished_at = $6
    where {_BY_KEY} and state = 'waiting' and queued_at < $7 returning rev
    """  # noqa: S608  words are ours
    total = 0
    for row in rows:
        total += len((yield statement, (*row, error, microseconds(now), microseconds(before))))
    return total


@retryable
def purge(before: datetime, limit: int = 1000) -> Query[int]:
    """Forget what was delivered before then. Dead ones stay until somebody replays or drops them."""
    rows = yield (
        "delete from delivery where (pcid, rev, part, webhook_id) in (select pcid, rev, part, webhook_id from delivery "
        "where state = 'delivered' and finished_at < $1 order by finished_at limit $2) returning rev",
        (microseconds(before), limit),
    )
    return len(rows)
