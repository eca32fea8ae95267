"""Queries for event deliveries: their state, lists for operators and partners, replay and removal.

A delivery is one event for one webhook, in one namespace. `ccp.server.storage.queries.outbox` creates deliveries,
`ccp.server.storage.queries.delivery_queue` leases and completes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, TypeAlias

from ccp.ids import EMAID, PCID
from ccp.server.domain.subscriptions import EventKind
from ccp.server.storage.engine.query import Query, Row, Statement, long_read, read_committed, retryable
from ccp.server.storage.queries import unknown_values
from ccp.server.storage.queries.contracts import instant, microseconds


class DeliveryState(StrEnum):
    """State of a delivery. dead: rejected or expired; it can be replayed."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    DEAD = "dead"


DeliveryCursor: TypeAlias = tuple[datetime, str]
"""`created_at` and event id of the last delivery of a page."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event for one webhook, in one namespace.

    pcid, emaid: empty for the event of a trust anchor. rev: the event's revision, which orders the events of a vehicle.
    part: the number of the namespace within the event. event_id: a UUID, the same at each attempt. kind: the name that
    the subscriber knows. namespace: empty if the event has none. payload: as it is sent. created_at: when the change
    was made. due_at: time of the next attempt, or end of the current lease. attempts: started so far.
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
        """The primary key."""
        return self.pcid, self.rev, self.part, self.webhook_id

    @property
    def cursor(self) -> DeliveryCursor:
        """Position in a list ordered newest first, for the next page."""
        return self.created_at, self.event_id


@dataclass(frozen=True, slots=True)
class Backlog:
    """outbox: events not yet fanned out. waiting, dead: deliveries. oldest: since when the oldest one has waited."""

    outbox: int
    waiting: int
    dead: int
    oldest: datetime | None


COLUMNS: Final = (
    "pcid, rev, part, webhook_id, event_id, kind, emaid, namespace, payload, created_at, queued_at, lease_until, "
    "attempts, state, last_status, last_error, finished_at"
)
"""The columns that `parse_rows` reads."""
BY_KEY: Final = "pcid = $1 and rev = $2 and part = $3 and webhook_id = $4"
"""Condition for one delivery."""


@long_read
def list_page(
    webhook_id: str | None, state: DeliveryState | None = None, before: DeliveryCursor | None = None, limit: int = 100
) -> Query[list[Delivery]]:
    """Deliveries of a webhook, or of all (None), newest first, beginning after `before`."""
    if webhook_id is None or state is not None:
        return list(parse_rows((yield _list_page(webhook_id, state, before, limit))))
    # The index of a webhook's deliveries has their state before their time.
    found: list[Delivery] = []
    for each in DeliveryState:
        found += parse_rows((yield _list_page(webhook_id, each, before, limit)))
    return sorted(found, key=lambda delivery: delivery.cursor, reverse=True)[:limit]


def _list_page(
    webhook_id: str | None, state: DeliveryState | None, before: DeliveryCursor | None, limit: int
) -> Statement:
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
        created_at = microseconds(before[0])
        # The first condition bounds the index; the second excludes what the pages before have shown.
        add("created_at <= ? and (created_at < ? or event_id < ?)", created_at, created_at, before[1])
    parameters.append(limit)
    return (
        f"select {COLUMNS} from delivery where {' and '.join(conditions)} "  # noqa: S608  constants
        f"order by created_at desc, event_id desc limit ${len(parameters)}",
        tuple(parameters),
    )


@read_committed
def find(event_id: str) -> Query[list[Delivery]]:
    """The delivery with an event id: one or none."""
    if not event_id.isprintable():
        return []  # No id contains such a character, and an engine may refuse it in a text.
    rows = yield f"select {COLUMNS} from delivery where event_id = $1", (event_id,)  # noqa: S608  constants
    return list(parse_rows(rows))


@long_read
def of_vehicle(pcid: PCID, limit: int) -> Query[list[Delivery]]:
    """Deliveries of the events of a vehicle, newest first."""
    rows = yield (
        f"select {COLUMNS} from delivery where pcid = $1 order by rev desc, part desc, webhook_id limit $2",  # noqa: S608
        (pcid, limit),
    )
    return list(parse_rows(rows))


def list_dead(limit: int, webhook_id: str | None = None) -> Query[list[Delivery]]:
    """Dead deliveries, newest first."""
    return list_page(webhook_id, DeliveryState.DEAD, limit=limit)


@long_read
def backlog() -> Query[Backlog]:
    """The backlog of all webhooks."""
    outbox = yield "select kind, count(*) from outbox group by kind", ()
    for kind, _ in outbox:
        unknown_values.known(EventKind, kind, "outbox.kind")
    waiting = yield "select count(*), min(queued_at) from delivery where state = 'waiting'", ()
    dead = yield "select count(*) from delivery where state = 'dead'", ()
    oldest = waiting[0][1]
    return Backlog(
        sum(count for _, count in outbox), waiting[0][0], dead[0][0], None if oldest is None else instant(oldest)
    )


@long_read
def backlog_by_webhook() -> Query[dict[str, Backlog]]:
    """The backlog of each webhook, without the outbox. Webhooks without waiting or dead deliveries are left out."""
    rows = yield (
        "select webhook_id, sum(case when state = 'waiting' then 1 else 0 end), "
        "sum(case when state = 'dead' then 1 else 0 end), min(case when state = 'waiting' then queued_at end) "
        "from delivery where state in ('waiting', 'dead') group by webhook_id",
        (),
    )
    return {
        webhook_id: Backlog(0, int(waiting), int(dead), None if oldest is None else instant(oldest))
        for webhook_id, waiting, dead, oldest in rows
    }


def parse_rows(rows: Iterable[Row]) -> Iterator[Delivery]:
    """Deliveries from rows of `COLUMNS`. Rows in a state that only a newer release knows are skipped."""
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


# --- Replay and removal ----------------------------------------------------------------------------------------------


BEFORE_ALL: Final[Row] = ("", -1, -1, "")
"""A key before every delivery."""


def dead_keys(webhook_id: str | None, after: Row, limit: int) -> Query[list[Row]]:
    """Keys of dead deliveries of a webhook, or of all (None), in lock order. after: the key before the first one."""
    if webhook_id is None:
        rows = yield (
            "select pcid, rev, part, webhook_id from delivery where state = 'dead' "
            "and (pcid, rev, part, webhook_id) > ($1, $2, $3, $4) order by pcid, rev, part, webhook_id limit $5",
            (*after, limit),
        )
    else:
        rows = yield (
            "select pcid, rev, part, webhook_id from delivery where state = 'dead' and webhook_id = $1 "
            "and (pcid, rev, part) > ($2, $3, $4) order by pcid, rev, part limit $5",
            (webhook_id, *after[:3], limit),
        )
    return [tuple(row) for row in rows]


def replay_keys(now: datetime, keys: Iterable[Row]) -> Query[int]:
    """Queue dead deliveries again, with a new count of attempts. Returns how many.

    The event id stays, so that a receiver recognises an event that it has.
    """
    statement = f"""
    update delivery set state = 'waiting', attempts = 0, queued_at = $5, lease_until = $5, finished_at = null
    where {BY_KEY} and state = 'dead' returning rev
    """  # noqa: S608  constants
    total = 0
    for key in keys:
        total += len((yield statement, (*key, microseconds(now))))
    return total


def drop_keys(keys: Iterable[Row]) -> Query[int]:
    """Delete dead deliveries. Returns how many."""
    total = 0
    for key in keys:
        total += len((yield f"delete from delivery where {BY_KEY} and state = 'dead' returning rev", key))  # noqa: S608
    return total


@retryable
def remove_by_webhook(webhook_id: str, limit: int) -> Query[int]:
    """Delete deliveries of a webhook in any state. Returns how many."""
    rows = yield (
        "delete from delivery where (pcid, rev, part, webhook_id) in (select pcid, rev, part, webhook_id from delivery "
        "where webhook_id = $1 order by state, created_at limit $2) returning rev",
        (webhook_id, limit),
    )
    return len(rows)


@retryable
def purge(before: datetime, limit: int = 1000) -> Query[int]:
    """Delete what was delivered before a time. Dead deliveries stay until an operator replays or drops them."""
    rows = yield (
        "delete from delivery where (pcid, rev, part, webhook_id) in (select pcid, rev, part, webhook_id from delivery "
        "where state = 'delivered' and finished_at < $1 order by finished_at limit $2) returning rev",
        (microseconds(before), limit),
    )
    return len(rows)
