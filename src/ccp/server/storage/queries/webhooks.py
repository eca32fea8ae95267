"""Queries for webhook subscriptions.

Locks are taken in one order: vehicles sorted by PCID, the change counter of webhooks, a webhook, deliveries by key.
"""

from __future__ import annotations

import json

from ccp.server.domain.subscriptions import Webhook
from ccp.server.storage.engine.query import Query, read_committed
from ccp.server.storage.engine.stored_secrets import encryption, secret_codec
from ccp.server.storage.queries import change_counters
from ccp.server.storage.queries.change_counters import ChangeCounter
from ccp.server.storage.queries.contracts import microseconds
from ccp.server.storage.queries.subscribers import WEBHOOK_COLUMNS, webhook_of


@read_committed
def list_by_party(client_id: str) -> Query[list[Webhook]]:
    """The webhooks of a party, oldest first."""
    select = f"select {WEBHOOK_COLUMNS} from webhook where client_id = $1 order by created_at, id"  # noqa: S608  constants
    rows = yield select, (client_id,)
    codec = yield from secret_codec(rows)
    return [webhook_of(row, codec) for row in rows]


@read_committed
def find(id: str) -> Query[Webhook | None]:
    """The webhook with an id."""
    if not id.isprintable():
        return None  # No id contains such a character, and an engine may refuse it in a text.
    rows = yield f"select {WEBHOOK_COLUMNS} from webhook where id = $1", (id,)  # noqa: S608  constants
    codec = yield from secret_codec(rows)
    return webhook_of(rows[0], codec) if rows else None


def lock() -> Query[None]:
    """Lock all webhooks until the end of the transaction. No event leaves the outbox meanwhile."""
    yield change_counters.lock(ChangeCounter.WEBHOOKS)


def put(webhook: Webhook) -> Query[None]:
    """Insert a webhook, or replace the one with its id."""
    yield from lock()
    encrypt = yield from encryption()
    previous = [(each.value, microseconds(each.valid_until)) for each in webhook.previous_secrets]
    yield (
        f"insert into webhook ({WEBHOOK_COLUMNS}) "  # noqa: S608  constants
        "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) "
        "on conflict (id) do update set client_id = excluded.client_id, url = excluded.url, "
        "description = excluded.description, events = excluded.events, wmis = excluded.wmis, "
        "provider_ids = excluded.provider_ids, metadata = excluded.metadata, api_version = excluded.api_version, "
        "enabled = excluded.enabled, updated_at = excluded.updated_at, signature_format = excluded.signature_format, "
        "secret = case when $16 then webhook.secret else excluded.secret end, "
        "previous_secrets = case when $16 then webhook.previous_secrets else excluded.previous_secrets end",
        (
            webhook.id, webhook.client_id, webhook.url, webhook.description, json.dumps(webhook.events),
            json.dumps(webhook.wmis), json.dumps(webhook.provider_ids), json.dumps(webhook.metadata),
            webhook.api_version, webhook.enabled, encrypt("webhook", "secret", webhook.id, webhook.secret),
            microseconds(webhook.created_at), microseconds(webhook.updated_at), webhook.signature_format.value,
            encrypt("webhook", "previous_secrets", webhook.id, json.dumps(previous)) if previous else "[]",
            webhook.damage is not None,
        ),
    )  # fmt: skip
    yield from change_counters.bump_and_log(ChangeCounter.WEBHOOKS, webhook.id)


def remove(id: str) -> Query[bool]:
    """Delete a webhook and all its deliveries, pending ones included. Returns whether it existed."""
    yield from lock()
    rows = yield "delete from webhook where id = $1 returning id", (id,)
    yield "delete from delivery where webhook_id = $1", (id,)
    if rows:
        yield from change_counters.bump_and_log(ChangeCounter.WEBHOOKS, id)
    return bool(rows)
