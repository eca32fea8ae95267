"""Queries for this pool's subscriptions to the events of other systems."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime

from ccp.server.storage.engine.query import Query, Row
from ccp.server.storage.engine.secret_codec import DamagedSecret, Place, SecretCodec
from ccp.server.storage.engine.stored_secrets import encryption, secret_codec
from ccp.server.storage.queries.change_counters import ChangeCounter, bump, lock
from ccp.server.storage.queries.contracts import instant, microseconds

_COLUMNS = "id, source, url, endpoint_id, secret, events, created_at, updated_at"


@dataclass(frozen=True, slots=True)
class Subscription:
    """A webhook that this pool has at another system.

    id: part of the address to which events are sent. source: "rcp", "pcp", or "peer:" and the party id of a pool.
    url: of the webhooks there. endpoint_id: of this webhook there. secret: HMAC key of its events, UTF-8. Both are None
    until the other system has accepted the subscription; the secret also if the stored one was damaged, so that a
    renewal replaces it. events: names as subscribed.
    """

    id: str
    source: str
    url: str
    endpoint_id: str | None
    secret: str | None = field(repr=False)
    events: tuple[str, ...]
    created_at: datetime
    updated_at: datetime

    @property
    def peer(self) -> str | None:
        """The party id of the pool that sends the events; None for another kind of system."""
        return self.source.removeprefix(PEER_PREFIX) if self.source.startswith(PEER_PREFIX) else None


PEER_PREFIX = "peer:"


def list_all() -> Query[list[Subscription]]:
    """All subscriptions, by source."""
    rows = yield f"select {_COLUMNS} from subscription order by source", ()  # noqa: S608  constants
    codec = yield from secret_codec(rows)
    return [_subscription(row, codec) for row in rows]


def find(source: str) -> Query[Subscription | None]:
    """The subscription to a source."""
    rows = yield f"select {_COLUMNS} from subscription where source = $1", (source,)  # noqa: S608  columns are ours
    codec = yield from secret_codec(rows)
    return _subscription(rows[0], codec) if rows else None


def ensure(candidate: Subscription) -> Query[Subscription]:
    """Return the subscription to a source; store the candidate if there is none. Of concurrent callers one wins."""
    yield lock(ChangeCounter.SUBSCRIPTIONS)
    found = yield from find(candidate.source)
    if found is not None:
        return found
    yield from put(candidate)
    return candidate


def put(subscription: Subscription) -> Query[None]:
    """Store a subscription in the place of the one with its id."""
    yield bump(ChangeCounter.SUBSCRIPTIONS)
    encrypt = yield from encryption()
    yield (
        f"insert into subscription ({_COLUMNS}) values ($1, $2, $3, $4, $5, $6, $7, $8) "  # noqa: S608  constants
        "on conflict (id) do update set url = excluded.url, endpoint_id = excluded.endpoint_id, "
        "secret = excluded.secret, events = excluded.events, updated_at = excluded.updated_at",
        (
            subscription.id,
            subscription.source,
            subscription.url,
            subscription.endpoint_id,
            encrypt.optional("subscription", "secret", subscription.id, subscription.secret),
            json.dumps(subscription.events),
            microseconds(subscription.created_at),
            microseconds(subscription.updated_at),
        ),
    )


def remove(subscription_id: str) -> Query[None]:
    """Delete a subscription."""
    yield bump(ChangeCounter.SUBSCRIPTIONS)
    yield "delete from subscription where id = $1", (subscription_id,)


def _subscription(row: Row, codec: SecretCodec) -> Subscription:
    subscription_id, source, url, endpoint_id, secret, events, created_at, updated_at = row
    if secret is not None:
        try:
            secret = codec.decrypt(Place("subscription", "secret", subscription_id), secret)
        except DamagedSecret:
            secret = None
    return Subscription(
        subscription_id,
        source,
        url,
        endpoint_id,
        secret,
        tuple(json.loads(events)),
        instant(created_at),
        instant(updated_at),
    )
