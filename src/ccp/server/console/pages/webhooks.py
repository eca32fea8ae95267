"""Webhooks of partners: what waits, what was answered, replay, ping, new secrets."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.responses import Response

from ccp.errors import FieldError
from ccp.server.console.application import Console
from ccp.server.console.forms import Form, parse_time
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.visit import Visit
from ccp.server.domain.statistics import WebhookBacklog
from ccp.server.domain.subscriptions import Webhook
from ccp.server.events import delivery_administration, webhook_administration
from ccp.server.events.delivery_administration import DeadDeliveries
from ccp.server.storage.queries import deliveries, subscribers
from ccp.server.storage.queries.deliveries import DeliveryCursor, DeliveryState

PAGE: Final = 50
_DELIVERIES: Final = 25
_FATES: Final = {
    "now": "The previous secrets have ended.",
    "later": "Until the previous secret ends, each event is signed with both.",
}
"""What becomes of the previous secret, by the value of the form."""


def register(console: Console, parts: ConsoleParts) -> None:
    """Register the pages and their actions."""
    store = parts.store

    @console.page("/webhooks", "Webhooks", navigation=True)
    async def show_all(visit: Visit) -> Response:
        found = await store.read(subscribers.list_page(visit.query("after"), PAGE + 1))
        counted = parts.statistics.webhooks
        backlog = {each.webhook_id: each for each in counted.webhooks} if counted else {}
        return visit.render(
            "webhooks.html",
            webhooks=[each.webhook for each in found[:PAGE]],
            following=found[PAGE - 1].webhook.id if len(found) > PAGE else None,
            backlog=backlog,
            counted_at=counted and counted.counted_at,
            host_of=host_of,
        )

    @console.page("/webhooks/{id}", "Webhook")
    async def show(visit: Visit) -> Response:
        webhook = await webhook_administration.find(store, visit.path_part("id"))
        state = visit.query("state")
        chosen = DeliveryState(state) if state in set(DeliveryState) else None
        before = _cursor(visit.query("before"))
        found = await store.read(deliveries.list_page(webhook.id, chosen, before, _DELIVERIES + 1))
        shown = found[:_DELIVERIES]
        return visit.render(
            "webhook.html",
            title=f"Webhook of {visit.ids.text(webhook.client_id)}",
            webhook=webhook,
            host=host_of(webhook),
            deliveries=shown,
            older=_text(shown[-1].cursor) if len(found) > _DELIVERIES else None,
            counts=_counts(parts, webhook.id),
            state=state,
            states=list(DeliveryState),
            longest=parts.config.event_secret_overlap,
        )

    @console.action("/webhooks/{id}/ping", title="Ping")
    async def ping(visit: Visit, form: Form) -> Response:
        webhook = await webhook_administration.find(store, visit.path_part("id"))
        result = await webhook_administration.ping(store, parts.pinger, webhook.id, visit.actor, visit.now)
        return visit.render("ping.html", webhook=webhook, host=host_of(webhook), result=result)

    @console.action("/webhooks/{id}/rotate-secret", title="New secret")
    async def rotate_secret(visit: Visit, form: Form) -> Response:
        ends = form.need("ends")
        if ends not in _FATES:
            raise FieldError("ends : must be one of the choices")
        longest = parts.config.event_secret_overlap
        webhook = await webhook_administration.rotate_secret(
            store, visit.path_part("id"), 0 if ends == "now" else None, longest, visit.actor, visit.now
        )
        return visit.render(
            "secret.html",
            secret=webhook.secret,
            about=f"secret of the webhook of {visit.ids.text(webhook.client_id)}",
            fate=_FATES[ends],
            back=f"/webhooks/{webhook.id}",
        )

    @console.action("/webhooks/{id}/enable")
    async def enable(visit: Visit, form: Form) -> Response:
        return await set_enabled(visit, True)

    @console.action("/webhooks/{id}/disable")
    async def disable(visit: Visit, form: Form) -> Response:
        return await set_enabled(visit, False)

    async def set_enabled(visit: Visit, enabled: bool) -> Response:
        webhook_id = visit.path_part("id")
        await webhook_administration.set_enabled(store, webhook_id, enabled, visit.actor, visit.now)
        return visit.redirect(f"/webhooks/{webhook_id}", notice="webhook-enabled" if enabled else "webhook-disabled")

    @console.action("/webhooks/{id}/replay")
    async def replay(visit: Visit, form: Form) -> Response:
        webhook_id = visit.path_part("id")
        event_id = form.get("event_id")
        which = DeadDeliveries((event_id,) if event_id else (), webhook_id)
        await delivery_administration.replay(store, which, visit.actor, visit.now)
        return visit.redirect(f"/webhooks/{webhook_id}", notice="events-replayed")


def _counts(parts: ConsoleParts, webhook_id: str) -> WebhookBacklog | None:
    """The newest count of a webhook's undelivered events; None if it has none."""
    counted = parts.statistics.webhooks
    return next((each for each in counted.webhooks if each.webhook_id == webhook_id), None) if counted else None


def _text(cursor: DeliveryCursor) -> str:
    return f"{cursor[0].isoformat()} {cursor[1]}"


def _cursor(text: str) -> DeliveryCursor | None:
    """The position in the list that a link names. Raises FieldError."""
    moment, _, event_id = text.partition(" ")
    if not text:
        return None
    return parse_time("before", moment), event_id


def host_of(webhook: Webhook) -> str:
    """Scheme and host of a webhook's URL. Path and query are often secrets."""
    parts = urlsplit(webhook.url)
    return f"{parts.scheme}://{parts.netloc}"
