"""Who wants to be told what, as each worker has it in memory."""

from __future__ import annotations

from ccp.ids import EMAID, ProviderId
from ccp.parties import Party, Role
from ccp.store import Store, events, parties
from ccp.store.steps import Steps
from ccp.subscriptions import EventKind, Webhook


class Subscribers:
    """The webhooks and parties of the store. `refresh` takes over what is registered now."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._active: dict[str, Webhook] = {}
        self._wanted: dict[EventKind, frozenset[ProviderId]] = {}

    async def refresh(self) -> None:
        webhooks, registered = await self._store.read(_both())
        by_id = {party.client_id: party for party in registered}
        active = [
            (webhook, party)
            for webhook in webhooks
            if (party := by_id.get(webhook.client_id)) is not None and webhook.enabled and party.enabled
        ]
        self._active = {webhook.id: webhook for webhook, _ in active}
        self._wanted = {
            kind: frozenset().union(*(_providers(webhook, party, kind) for webhook, party in active))
            for kind in EventKind
            if kind.role is Role.EMSP
        }

    def active(self, webhook_id: str) -> Webhook | None:
        """A webhook that is told of things now; None for one that is disabled, or whose party is, or that is gone."""
        return self._active.get(webhook_id)

    def wants(self, kind: EventKind, emaid: EMAID) -> bool:
        """Whether some eMSP is to be told of such an event of a contract: who is not causes no event."""
        owners = self._wanted.get(kind)
        if not owners:
            return False  # Every delivery to a vehicle comes here, mostly for nobody.
        return emaid.provider in owners


def _both() -> Steps[tuple[list[Webhook], list[Party]]]:
    webhooks = yield from events.webhooks()
    registered = (yield from parties.every()) if webhooks else []
    return webhooks, registered


def _providers(webhook: Webhook, party: Party, kind: EventKind) -> frozenset[ProviderId]:
    """Providers whose contracts' events of a kind a webhook is told of."""
    if webhook.name_of(kind) is None or Role.EMSP not in party.roles:
        return frozenset()
    return party.provider_ids & set(webhook.provider_ids) if webhook.provider_ids else party.provider_ids
