"""Replay and removal of dead deliveries by the operator: the same rules for commands and the console.

Each transaction has a limited number of deliveries, and its own row in the audit trail. An interrupted change is
repeated: what is done stays done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ccp.errors import NotFound
from ccp.errors.codes import ErrorCode
from ccp.server.domain.actor import Actor
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query, Row, long_write
from ccp.server.storage.queries import deliveries, webhooks
from ccp.server.storage.queries.audit import Action, Entry, record
from ccp.server.storage.queries.deliveries import Delivery, DeliveryState

PORTION: Final = 500
"""Deliveries of one transaction."""


@dataclass(frozen=True, slots=True)
class DeadDeliveries:
    """Which dead deliveries. event_ids: these events. webhook_id: of this webhook only. Neither: all."""

    event_ids: tuple[str, ...] = ()
    webhook_id: str | None = None


async def replay(store: Store, which: DeadDeliveries, by: Actor, now: datetime) -> int:
    """Queue dead deliveries again, under the same event ids. Returns how many. Raises NotFound."""
    return await _change(store, which, lambda keys: deliveries.replay_keys(now, keys), Action.EVENTS_REPLAYED, by, now)


async def drop(store: Store, which: DeadDeliveries, by: Actor, now: datetime) -> int:
    """Delete dead deliveries. Returns how many. Raises NotFound."""
    return await _change(store, which, deliveries.drop_keys, Action.EVENTS_DROPPED, by, now)


async def _change(
    store: Store,
    which: DeadDeliveries,
    do: Callable[[Sequence[Row]], Query[int]],
    action: Action,
    by: Actor,
    now: datetime,
) -> int:
    def entry(about: dict[str, Any], count: int) -> Entry:
        return Entry(now, by.name, action, {**about, "deliveries": count}, trace_id=by.trace_id)

    if which.event_ids:

        @long_write
        def change_named() -> Query[int]:
            named = yield from _named(which)
            count = yield from do([each.key for each in named])
            yield from record(entry({"events": [each.event_id for each in named]}, count))
            return count

        return await store.write(change_named())

    def change_portion(after: Row) -> Query[tuple[int, Row | None]]:
        if which.webhook_id is not None and (yield from webhooks.find(which.webhook_id)) is None:
            raise NotFound(f"There is no webhook {which.webhook_id[:64]}.", code=ErrorCode.WEBHOOK_NOT_FOUND)
        keys = yield from deliveries.dead_keys(which.webhook_id, after, PORTION)
        count = yield from do(keys)
        if count or not after[0]:  # A later portion without deliveries is no change.
            yield from record(entry({"endpoint": which.webhook_id or "all"}, count))
        return count, keys[-1] if len(keys) == PORTION else None

    last: Row | None = deliveries.BEFORE_ALL
    total = 0
    while last is not None:
        count, last = await store.write(long_write(change_portion)(last))
        total += count
    return total


def _named(which: DeadDeliveries) -> Query[list[Delivery]]:
    """The dead deliveries of the named events, in the order in which they are locked. Raises NotFound."""
    named = []
    for event_id in dict.fromkeys(which.event_ids):
        found: list[Delivery] = yield from deliveries.find(event_id)
        if not found or which.webhook_id not in (None, found[0].webhook_id):
            raise NotFound(f"The event {event_id[:64]} is not known; only dead ones are replayed or dropped.")
        if found[0].state is not DeliveryState.DEAD:
            state = found[0].state.value
            raise NotFound(f"The event {event_id[:64]} is {state}; only dead ones are replayed or dropped.")
        named.append(found[0])
    return sorted(named, key=lambda each: each.key)
