"""Changes that the operator makes to partners' webhooks. Each is recorded in the audit trail, in its transaction.

Partners manage their own webhooks by the event service (`webhooks`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

from ccp.errors import NotFound
from ccp.errors.codes import ErrorCode
from ccp.server.domain.actor import Actor
from ccp.server.domain.subscriptions import SignatureFormat, Webhook
from ccp.server.events.ping import Pinger, PingResult
from ccp.server.events.secret_rotation import rotated, rotation_fields
from ccp.server.events.webhooks import DELETE_BATCH, audit_fields, edit_fields
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import audit, deliveries, webhooks
from ccp.server.storage.queries.audit import Action, Entry


async def find(store: Store, webhook_id: str) -> Webhook:
    """Raises NotFound."""
    return await store.read(_find(webhook_id))


async def set_enabled(store: Store, webhook_id: str, enabled: bool, by: Actor, now: datetime) -> Webhook:
    """Enable or disable a webhook; its waiting deliveries stay. Raises NotFound."""
    return await _edit(store, webhook_id, lambda webhook: replace(webhook, enabled=enabled), by, now)


async def set_signature_format(
    store: Store, webhook_id: str, signature_format: SignatureFormat, by: Actor, now: datetime
) -> Webhook:
    """Set the form of the signatures in X-Operator-Signature. Raises NotFound."""
    return await _edit(store, webhook_id, lambda webhook: replace(webhook, signature_format=signature_format), by, now)


async def rotate_secret(
    store: Store, webhook_id: str, overlap: int | None, max_overlap: int, by: Actor, now: datetime
) -> Webhook:
    """Replace the secret of a webhook; see `secret_rotation.rotated`. Raises NotFound, FieldError, Conflict."""

    def change() -> Query[Webhook]:
        yield from webhooks.lock()
        after = rotated((yield from _find(webhook_id)), overlap, max_overlap, now)
        yield from webhooks.put(after)
        yield from _record(after, by, Action.WEBHOOK_SECRET_ROTATED, now, **rotation_fields(after))
        return after

    return await store.write(change())


async def ping(store: Store, pinger: Pinger, webhook_id: str, by: Actor, now: datetime) -> PingResult:
    """Send a test event to a webhook, also to a disabled one. Raises NotFound."""
    webhook = await find(store, webhook_id)
    result = await pinger.ping(webhook, now)
    await store.write(_record(webhook, by, Action.WEBHOOK_PINGED, now, **result.audit_fields()))
    return result


async def remove(store: Store, webhook_id: str, by: Actor, now: datetime) -> Webhook:
    """Remove a webhook and its deliveries. Raises NotFound.

    Deletes most deliveries before the webhook, in transactions of limited size, as `Webhooks.remove` does.
    """
    await find(store, webhook_id)
    while await store.write(deliveries.remove_by_webhook(webhook_id, DELETE_BATCH)) == DELETE_BATCH:
        pass

    def change() -> Query[Webhook]:
        yield from webhooks.lock()
        webhook = yield from _find(webhook_id)
        yield from webhooks.remove(webhook_id)
        yield from _record(webhook, by, Action.WEBHOOK_REMOVED, now, **audit_fields(webhook))
        return webhook

    return await store.write(change())


async def _edit(
    store: Store, webhook_id: str, edited: Callable[[Webhook], Webhook], by: Actor, now: datetime
) -> Webhook:
    def change() -> Query[Webhook]:
        yield from webhooks.lock()
        before = yield from _find(webhook_id)
        after = edited(before)
        if after == before:
            return before
        after = replace(after, updated_at=now)
        yield from webhooks.put(after)
        yield from _record(before, by, Action.WEBHOOK_EDITED, now, **edit_fields(before, after))
        return after

    return await store.write(change())


def _find(webhook_id: str) -> Query[Webhook]:
    webhook = yield from webhooks.find(webhook_id)
    if webhook is None:
        raise NotFound(f"There is no webhook {webhook_id[:64]}.", code=ErrorCode.WEBHOOK_NOT_FOUND)
    return webhook


def _record(webhook: Webhook, by: Actor, action: Action, now: datetime, **more: Any) -> Query[None]:
    subject = {"endpoint": webhook.id, "party": webhook.client_id, **more}
    yield from audit.record(Entry(now, by.name, action, subject, trace_id=by.trace_id))
