"""Queries for the webhooks that receive an event, together with the parties that own them.

Each query finds its rows by an index, however many parties and webhooks there are.
"""

from __future__ import annotations

import json
from typing import Final

from ccp.ids import WMI, ProviderId
from ccp.server.domain.subscriptions import PreviousSecret, SignatureFormat, Subscriber, Webhook
from ccp.server.storage.engine.query import Query, Row, read_committed
from ccp.server.storage.engine.secret_codec import DamagedSecret, Place, SecretCodec
from ccp.server.storage.engine.stored_secrets import secret_codec
from ccp.server.storage.queries.change_counters import CHANGED_KEYS, ChangeCounter
from ccp.server.storage.queries.contracts import instant
from ccp.server.storage.queries.parties import COLUMNS as PARTY_COLUMNS
from ccp.server.storage.queries.parties import party_of

_WEBHOOK_COLUMN_NAMES: Final = (
    "id", "client_id", "url", "description", "events", "wmis", "provider_ids", "metadata", "api_version", "enabled",
    "secret", "created_at", "updated_at", "signature_format", "previous_secrets",
)  # fmt: skip
WEBHOOK_COLUMNS: Final = ", ".join(_WEBHOOK_COLUMN_NAMES)
"""The columns that `webhook_of` reads."""

_COLUMNS: Final = ", ".join(
    [*(f"w.{column}" for column in _WEBHOOK_COLUMN_NAMES), *(f"p.{column}" for column in PARTY_COLUMNS.split(", "))]
)
_JOINED: Final = f"select {_COLUMNS} from webhook w join party p on p.client_id = w.client_id"  # noqa: S608  constants


@read_committed
def list_by_owner(kind: str, id: str) -> Query[list[Subscriber]]:
    """Webhooks of the party that owns a provider id or WMI, oldest first; without secrets, see `_without_secrets`.

    kind: see `ccp.server.domain.parties.owned_ids`.
    """
    select = f"""
    select {_COLUMNS} from party_owns o
    join party p on p.client_id = o.client_id join webhook w on w.client_id = o.client_id
    where o.kind = $1 and o.id = $2 order by w.created_at, w.id
    """  # noqa: S608  constants
    rows = yield select, (kind, id)
    return [_without_secrets(row) for row in rows]


@read_committed
def list_by_event(name: str, after: str, limit: int) -> Query[list[Subscriber]]:
    """Webhooks that subscribed to an event under this name, by id, beginning after one; without secrets.

    Reads every webhook: for events that are rare.
    """
    rows = yield f"{_JOINED} where w.id > $1 and w.events like $2 order by w.id limit $3", (after, f'%"{name}"%', limit)
    return [_without_secrets(row) for row in rows]


@read_committed
def list_page(after: str, limit: int) -> Query[list[Subscriber]]:
    """Webhooks by id, beginning after one."""
    rows = yield f"{_JOINED} where w.id > $1 order by w.id limit $2", (after, limit)
    codec = yield from secret_codec(rows)
    return [_subscriber(row, codec) for row in rows]


@read_committed
def list_changed(counter: ChangeCounter, after: int, last: int) -> Query[list[Subscriber]]:
    """Webhooks of the changes with numbers above `after`, up to `last`, as they are now.

    For the counter of parties: the webhooks of the changed parties.
    """
    column = "w.id" if counter is ChangeCounter.WEBHOOKS else "w.client_id"
    rows = yield f"{_JOINED} where {column} in {CHANGED_KEYS}", (counter.value, after, last)
    codec = yield from secret_codec(rows)
    return [_subscriber(row, codec) for row in rows]


def webhook_of(row: Row, codec: SecretCodec | None) -> Webhook:
    """A webhook from a row of `WEBHOOK_COLUMNS`. codec: None leaves the secrets out. Raises UnreadableSecret."""
    (id, client_id, url, description, events, wmis, provider_ids, metadata, api_version, enabled, secret,
     created_at, updated_at, signature_format, previous_secrets) = row  # fmt: skip
    damage = None
    try:
        if codec is None:
            secret, previous_secrets = "", "[]"
        else:
            secret = codec.decrypt(Place("webhook", "secret", id), secret)
            previous_secrets = codec.decrypt(Place("webhook", "previous_secrets", id), previous_secrets)
    except DamagedSecret as exc:
        secret, previous_secrets, damage = "", "[]", str(exc)
    return Webhook(
        id,
        client_id,
        url,
        description,
        tuple(json.loads(events)),
        tuple(map(WMI, json.loads(wmis))),
        tuple(map(ProviderId, json.loads(provider_ids))),
        json.loads(metadata),
        api_version,
        bool(enabled),
        secret,
        instant(created_at),
        instant(updated_at),
        SignatureFormat.BARE if signature_format == SignatureFormat.BARE else SignatureFormat.SHA256,
        tuple(PreviousSecret(value, instant(until)) for value, until in json.loads(previous_secrets)),
        damage,
    )


def _without_secrets(row: Row) -> Subscriber:
    """A subscriber for fan-out, which only needs to know who gets an event and is not to pay for decryption."""
    return _subscriber(row, None)


def _subscriber(row: Row, codec: SecretCodec | None) -> Subscriber:
    row = tuple(row)
    return Subscriber(webhook_of(row[: len(_WEBHOOK_COLUMN_NAMES)], codec), party_of(row[len(_WEBHOOK_COLUMN_NAMES) :]))
