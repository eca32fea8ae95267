"""Subscriptions of webhooks, cached in each worker."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from ccp.ids import EMAID, ProviderId
from ccp.server.domain.parties import Party, PartyRole
from ccp.server.domain.subscriptions import EventKind, Subscriber, Webhook
from ccp.server.storage import Store
from ccp.server.storage.change_feed import PORTION, ChangeFeed
from ccp.server.storage.queries import subscribers as queries
from ccp.server.storage.queries.change_counters import ChangeCounter


class Subscribers:
    """The webhooks of the store. `refresh` loads those that were added or changed since the last time."""

    def __init__(self, store: Store) -> None:
        self._cache = _WebhookCache(store)
        self._feed = ChangeFeed(store, (ChangeCounter.PARTIES, ChangeCounter.WEBHOOKS), self._cache)

    async def refresh(self) -> None:
        """Load changes. Raises Unavailable."""
        await self._feed.refresh()

    def active(self, webhook_id: str) -> Webhook | None:
        """An active webhook; None if it or its party is disabled, or if it does not exist."""
        known = self._cache.known.get(webhook_id)
        return known.webhook if known is not None and known.active else None

    def has_any(self, kind: EventKind) -> bool:
        """Whether any eMSP webhook wants this event of any contract."""
        return bool(self._cache.wanted.get(kind))

    def wants(self, kind: EventKind, emaid: EMAID) -> bool:
        """Whether any eMSP webhook wants this event of a contract; otherwise the event is not created."""
        owners = self._cache.wanted.get(kind)
        if not owners:
            return False  # Every delivery to a vehicle comes here, mostly without a subscription.
        return emaid.provider in owners


class _CachedWebhook(NamedTuple):
    """active: webhook and party are enabled. wanted: per event, the providers whose contracts count."""

    webhook: Webhook
    active: bool
    wanted: dict[EventKind, frozenset[ProviderId]]


class _WebhookCache:
    """Implements `ccp.server.storage.change_feed.TableCopy`. wanted: per event and provider, the number of webhooks."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.known: dict[str, _CachedWebhook] = {}
        self.wanted: dict[EventKind, Counter[ProviderId]] = {}
        self._of_party: dict[str, set[str]] = {}

    async def reload(self) -> None:
        """Load all webhooks, page by page."""
        gone, after = set(self.known), ""
        while found := await self._store.read(queries.list_page(after, PORTION)):
            for subscriber in found:
                after = subscriber.webhook.id
                gone.discard(after)
                self._put(subscriber)
            await asyncio.sleep(0)
        for webhook_id in gone:
            self._drop(webhook_id)

    async def apply(self, counter: ChangeCounter, after: int, last: int, keys: Collection[str]) -> None:
        """Load the webhooks that a range of changes is about, by webhook or by party."""
        found = await self._store.read(queries.list_changed(counter, after, last))
        if counter is ChangeCounter.PARTIES:
            known = {webhook_id for client_id in keys for webhook_id in self._of_party.get(client_id, ())}
        else:
            known = {webhook_id for webhook_id in keys if webhook_id in self.known}
        for webhook_id in known - {subscriber.webhook.id for subscriber in found}:
            self._drop(webhook_id)
        for subscriber in found:
            self._put(subscriber)

    def _put(self, subscriber: Subscriber) -> None:
        webhook, party = subscriber.webhook, subscriber.party
        active = webhook.enabled and party.enabled
        wanted = _wanted(webhook, party) if active else {}
        known = _CachedWebhook(webhook, active, wanted)
        if known == self.known.get(webhook.id):
            return  # Keep the old objects: gc.freeze() exempts them from garbage collection (`ccp.server.app`).
        self._drop(webhook.id)
        self.known[webhook.id] = known
        self._of_party.setdefault(webhook.client_id, set()).add(webhook.id)
        for kind, providers in wanted.items():
            self.wanted.setdefault(kind, Counter()).update(providers)

    def _drop(self, webhook_id: str) -> None:
        known = self.known.pop(webhook_id, None)
        if known is None:
            return
        of_party = self._of_party[known.webhook.client_id]
        of_party.discard(webhook_id)
        if not of_party:
            del self._of_party[known.webhook.client_id]
        for kind, providers in known.wanted.items():
            counts = self.wanted[kind]
            for provider in providers:
                counts[provider] -= 1
                if not counts[provider]:
                    del counts[provider]


def _wanted(webhook: Webhook, party: Party) -> dict[EventKind, frozenset[ProviderId]]:
    """For each eMSP event that a webhook subscribed to: the providers whose contracts' events it gets."""
    if PartyRole.EMSP not in party.roles:
        return {}
    own = party.provider_ids & set(webhook.provider_ids) if webhook.provider_ids else party.provider_ids
    return {
        kind: own
        for kind in EventKind
        if own and kind.role is PartyRole.EMSP and webhook.subscribed_name(kind) is not None
    }
