"""Subscriptions of this pool to events of other systems: of a Root or Provisioning Certificate Pool, and of peers.

    source = event_source(name, config, peer)
    await subscribe(store, service, source, config.public_url, now=now, actor=actor)

Subscribing again repairs what is missing at either side, so an interrupted call is simply repeated.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from pydantic import ValidationError

from ccp.errors import ConfigurationError
from ccp.server.external.event_service import EventService, RemoteWebhook, WebhookRefused, endpoints_url
from ccp.server.settings import Settings
from ccp.server.settings.services import SERVICES, Dialect, ServiceSettings
from ccp.server.storage import Store
from ccp.server.storage.queries import subscriptions as queries
from ccp.server.storage.queries.audit import Action, Entry, with_audit
from ccp.server.storage.queries.peers import Peer
from ccp.server.storage.queries.subscriptions import PEER_PREFIX, Subscription

CALLBACK_BASE: Final = "/opnc/v1/ccp/events"
"""Events are sent to this path, a slash, and the id of the subscription."""

_SERVICES: Final = ("rcp", "pcp")
_ROOTS: Final = ("root.cert.added", "root.cert.expired", "root.cert.revoked")
_PROVISIONING: Final = ("prov.cert.updated", "prov.cert.deleted", "prov.cert.factory.reset")
_OLD_RESET: Final = ("prov.cert.updated", "prov.cert.deleted", "prov.cert.updated.factory.reset")


@dataclass(frozen=True, slots=True)
class EventSource:
    """A system whose events can be subscribed to.

    name: "rcp", "pcp", or "peer:" and a party id. settings: with the URL of the webhooks there. label: for messages.
    choices: lists of events to subscribe to; a later one for a system that does not know all of an earlier one.
    """

    name: str
    label: str
    settings: ServiceSettings
    choices: tuple[tuple[str, ...], ...]


def source_name(name: str) -> str:
    """The name of a source as it is stored, for the name that an operator uses."""
    return name if name in _SERVICES else f"{PEER_PREFIX}{name}"


def event_source(
    name: str, config: Settings, peer: Peer | None, events: Sequence[str] = (), url: str = ""
) -> EventSource:
    """The source that an operator names.

    name: "rcp", "pcp", or the party id of a peer. peer: the registered one with this id. events: instead of the usual
    ones. url: of the webhooks there, if it does not follow from the URL of the service. Raises ConfigurationError.
    """
    if name in _SERVICES:
        settings: ServiceSettings | None = getattr(config, name)
        if settings is None:
            raise ConfigurationError(f"There is no {SERVICES[name]} in the configuration ({name}_url).")
        label = SERVICES[name]
    elif peer is not None:
        settings, label = _settings_of(peer), f"pool {name}"
    else:
        raise ConfigurationError(f"{name} is neither rcp, nor pcp, nor a peer ('ccp peer list').")
    target = url.rstrip("/") or endpoints_url(settings.url, settings.dialect)
    choices = (tuple(events),) if events else _usual_events(name, settings.dialect)
    try:  # The rules for a service's URL hold: the credentials go there.
        at_webhooks = ServiceSettings.model_validate({**settings.model_dump(exclude_unset=True), "url": target})
    except ValidationError as exc:
        reason = exc.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"The address of the webhooks of the {label} cannot be used: {reason}.") from None
    return EventSource(source_name(name), label, at_webhooks, choices)


def _usual_events(name: str, dialect: Dialect) -> tuple[tuple[str, ...], ...]:
    if name != "pcp":
        return _ROOTS, _ROOTS[:2]  # The published lists lack root.cert.revoked, which the payloads have.
    family = "mo" if dialect is Dialect.OPCP else "emsp"
    return tuple(tuple(f"{family}.{event}" for event in names) for names in (_PROVISIONING, _OLD_RESET))


def _settings_of(peer: Peer) -> ServiceSettings:
    """A peer's address and our credentials there, in the shape of an external service. Raises ConfigurationError."""
    if peer.damage is not None:
        raise ConfigurationError(f"{peer.damage} Store a new one with `ccp peer rotate-secret {peer.party_id}`.")
    access = (
        {"token": peer.token}
        if peer.token is not None
        else {
            "token_url": peer.token_url or f"{peer.base_url.rstrip('/')}/oauth/token",
            "client_id": peer.client_id,
            "client_secret": peer.secret,
            "audience": peer.audience,
        }
    )
    given = {name: value for name, value in access.items() if value is not None}
    try:
        return ServiceSettings.model_validate(
            {"url": peer.base_url, "dialect": peer.dialect, "allow_http": True, **given}
        )
    except ValidationError as exc:
        raise ConfigurationError(f"The peer {peer.party_id} cannot be called: {exc.errors()[0]['msg']}.") from None


async def subscribe(
    store: Store,
    service: EventService,
    source: EventSource,
    public_url: str,
    *,
    now: datetime,
    actor: str,
    secret: str | None = None,
    renew: bool = False,
) -> Subscription:
    """Subscribe to a source, or repair the subscription.

    secret: for a system that does not report the secret of a webhook. renew: replace the webhook there, and so its
    secret; events that are on their way are lost. Raises UpstreamError, Unavailable; ConfigurationError if no secret is
    known.
    """
    url = source.settings.url
    draft = Subscription(str(uuid.uuid4()), source.name, url, None, None, (), now, now)
    before = await store.write(queries.ensure(draft))
    was_pending = before.endpoint_id is None
    if before.url != url:  # The system has moved: what is known of the webhook belongs to the former address.
        before = replace(before, endpoint_id=None, secret=None)
    elif renew and before.endpoint_id is not None:
        await service.delete(before.endpoint_id)
        before = replace(before, endpoint_id=None, secret=None)
    callback = f"{public_url}{CALLBACK_BASE}/{before.id}"
    webhook, events = await _ensure_webhook(service, before, callback, source.choices)
    known = secret or webhook.secret or (before.secret if webhook.id == before.endpoint_id else None)
    if known is None:
        await service.delete(webhook.id)
        raise ConfigurationError(
            f"The {source.label} does not report the secret of the webhook. Agree on one with its operator, and give "
            "it in CCP_SUBSCRIPTION_SECRET."
        )
    after = replace(before, url=url, endpoint_id=webhook.id, secret=known, events=events, updated_at=now)
    action = Action.SUBSCRIPTION_ADDED if was_pending else Action.SUBSCRIPTION_EDITED
    entry = Entry(now, actor, action, {"source": source.name, "subscription": after.id, "events": list(events)})
    await store.write(with_audit(queries.put(after), lambda _: [entry]))
    return after


async def _ensure_webhook(
    service: EventService, before: Subscription, callback: str, choices: tuple[tuple[str, ...], ...]
) -> tuple[RemoteWebhook, tuple[str, ...]]:
    """The webhook for a subscription, created if it is missing, and the events that it has."""
    for events in choices:
        try:
            return await _put_webhook(service, before, callback, events), events
        except WebhookRefused:
            if events is choices[-1]:
                raise
    raise AssertionError("there is always a choice")


async def _put_webhook(
    service: EventService, before: Subscription, callback: str, events: tuple[str, ...]
) -> RemoteWebhook:
    if before.endpoint_id is not None and await service.update(before.endpoint_id, callback, events):
        await service.delete_others(callback, before.endpoint_id)
        return await service.get(before.endpoint_id) or RemoteWebhook(before.endpoint_id, callback, None)
    # A call that was interrupted may have left a webhook behind.
    left = await service.find(callback)
    if left is not None and left.secret and await service.update(left.id, callback, events):
        return left
    if left is not None:
        await service.delete(left.id)
    created = await service.create(callback, events)
    return created if created.secret else (await service.get(created.id) or created)


async def unsubscribe(
    store: Store, service: EventService | None, name: str, *, now: datetime, actor: str
) -> Subscription:
    """End a subscription. name: as an operator uses it. service: None only forgets it here.

    Raises ConfigurationError, UpstreamError, Unavailable.
    """
    found = await store.read(queries.find(source_name(name)))
    if found is None:
        raise ConfigurationError(f"There is no subscription to {name}.")
    if service is not None and found.endpoint_id is not None:
        await service.delete(found.endpoint_id)
    entry = Entry(now, actor, Action.SUBSCRIPTION_REMOVED, {"source": found.source, "subscription": found.id})
    await store.write(with_audit(queries.remove(found.id), lambda _: [entry]))
    return found
