"""Queries of the delivery queue: lease due deliveries, acknowledge an attempt, give a lease back, expire.

Which webhooks have deliveries due is in `ccp.server.storage.queries.due_deliveries`. Any number of processes may work
on the queue concurrently. Locks are taken in one order: vehicles sorted by PCID, the change counter of webhooks, a
webhook, deliveries by key.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final

from ccp.server.domain.subscriptions import EventKind
from ccp.server.storage.engine.query import Query, Row, long_read, retryable
from ccp.server.storage.queries import outbox
from ccp.server.storage.queries.contracts import microseconds
from ccp.server.storage.queries.deliveries import BY_KEY, COLUMNS, Delivery, DeliveryState, parse_rows
from ccp.server.storage.queries.outbox import KINDS

_CANDIDATES: Final = f"""
select d.pcid, d.rev, d.part from delivery d
where d.webhook_id = $1 and d.state = 'waiting' and d.lease_until <= $2
    and not exists (
        select 1 from delivery e where e.pcid = d.pcid and e.webhook_id = d.webhook_id and e.state = 'waiting'
            and (e.rev < d.rev or (e.rev = d.rev and e.part < d.part))
    )
    and not exists (select 1 from outbox o where o.pcid = d.pcid and o.rev < d.rev and o.kind in {KINDS})
order by d.lease_until limit $3
"""  # noqa: S608  constants
_LEASE: Final = f"""
update delivery set lease_until = $5, attempts = attempts + 1
where {BY_KEY} and state = 'waiting' and lease_until <= $6 returning {COLUMNS}
"""  # noqa: S608  constants


@retryable
def lease(webhook_id: str, now: datetime, until: datetime, limit: int) -> Query[list[Delivery]]:
    """Lease the due deliveries of a webhook until a time: at most one per vehicle, in the order of its events.

    A delivery is not leased while an earlier event of its vehicle waits for this webhook, is leased, or is still in the
    outbox. Returns nothing if the webhook is gone or disabled, or if another process leases for it at the moment.
    """
    rows = yield "select enabled from webhook where id = $1 for update skip locked", (webhook_id,)
    if not rows or not rows[0][0]:
        return []
    found = yield _CANDIDATES, (webhook_id, microseconds(now), limit)
    leased: list[Delivery] = []
    for pcid, rev, part in sorted(map(tuple, found)):
        rows = yield _LEASE, (pcid, rev, part, webhook_id, microseconds(until), microseconds(now))
        leased += parse_rows(rows)
    return leased


class AttemptOutcome(StrEnum):
    """Outcome of an attempt. failed: it is retried. given up: it failed, and was the last attempt."""

    DELIVERED = "delivered"
    REJECTED = "rejected"
    FAILED = "failed"
    GIVEN_UP = "given up"


_ACK: Final = f"""
update delivery set state = $5, lease_until = $6, last_status = $7, last_error = $8, finished_at = $9
where {BY_KEY} and attempts = $10 and lease_until = $11 returning rev
"""  # noqa: S608  constants


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
    """Record the outcome of an attempt, and the event for the contract's provider, in one transaction.

    delivery: as it was leased. retry_at: the next attempt after a failed one. notify: kind of the provider's event; the
    provider gets one event for a success, however many webhooks of the OEM received the delivery. Returns False, and
    changes nothing, if the lease has expired and another process holds it, or if the delivery is gone.
    """
    if notify is not None:
        # Every event of a vehicle locks its row first. An erased vehicle is not created again.
        yield "select rev from vehicle where pcid = $1 for update", (delivery.pcid,)
    states = {AttemptOutcome.DELIVERED: DeliveryState.DELIVERED, AttemptOutcome.FAILED: DeliveryState.WAITING}
    state = states.get(outcome, DeliveryState.DEAD)
    due_at = retry_at if state is DeliveryState.WAITING and retry_at is not None else now
    finished = None if state is DeliveryState.WAITING else microseconds(now)
    done = yield _ACK, (
        *delivery.key, state.value, microseconds(due_at), status, error, finished,
        delivery.attempts, microseconds(delivery.due_at),
    )  # fmt: skip
    if not done:
        return False
    delivered = outcome is AttemptOutcome.DELIVERED
    if notify is not None and not (delivered and (yield from _delivered_to_another(delivery))):
        yield from outbox.add_events([(notify, delivery.emaid, delivery.pcid, delivery.namespace, now)])
    return True


def _delivered_to_another(delivery: Delivery) -> Query[bool]:
    """Whether another webhook has received this event before."""
    rows = yield (
        "select 1 from delivery where pcid = $1 and rev = $2 and part = $3 and webhook_id <> $4 "
        "and state = 'delivered' limit 1",
        delivery.key,
    )
    return bool(rows)


@retryable
def nack(delivery: Delivery, now: datetime) -> Query[None]:
    """Give back a lease without an attempt."""
    statement = f"""
    update delivery set lease_until = $5, attempts = attempts - 1
    where {BY_KEY} and state = 'waiting' and attempts = $6 and lease_until = $7
    """  # noqa: S608  constants
    yield statement, (*delivery.key, microseconds(now), delivery.attempts, microseconds(delivery.due_at))


@retryable
def expire(before: datetime, now: datetime, error: str, limit: int = 500) -> Query[int]:
    """Make deliveries dead that have waited since before a time. Returns how many.

    error: recorded for deliveries without an attempt. A leased delivery is still completed if its attempt succeeds.
    """
    rows = yield (
        "select pcid, rev, part, webhook_id from delivery where state = 'waiting' and queued_at < $1 "
        "order by pcid, rev, part, webhook_id limit $2",
        (microseconds(before), limit),
    )
    statement = f"""
    update delivery set state = 'dead', last_error = coalesce(last_error, $5), finished_at = $6
    where {BY_KEY} and state = 'waiting' and queued_at < $7 returning rev
    """  # noqa: S608  constants
    total = 0
    for row in rows:
        total += len((yield statement, (*row, error, microseconds(now), microseconds(before))))
    return total


@long_read
def scheduled_beyond(horizon: datetime, limit: int = 500) -> Query[list[Row]]:
    """Keys of waiting deliveries that are due later than a time, in lock order."""
    rows = yield (
        "select pcid, rev, part, webhook_id from delivery where state = 'waiting' and lease_until > $1 "
        "order by pcid, rev, part, webhook_id limit $2",
        (microseconds(horizon), limit),
    )
    return [tuple(row) for row in rows]


@retryable
def reschedule(keys: Sequence[Row], horizon: datetime, now: datetime) -> Query[int]:
    """Make deliveries due now that are due later than any lease or delay lasts, because the clock had jumped ahead.

    keys: from `scheduled_beyond`. Returns how many.
    """
    statement = f"""
    update delivery set lease_until = $5, queued_at = case when queued_at > $5 then $5 else queued_at end
    where {BY_KEY} and state = 'waiting' and lease_until > $6 returning rev
    """  # noqa: S608  constants
    total = 0
    for key in keys:
        total += len((yield statement, (*key, microseconds(now), microseconds(horizon))))
    return total
