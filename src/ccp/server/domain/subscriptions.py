"""What partners are told: the events by name, and which subscription an event is for. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from ccp.ids import EMAID, PCID, WMI, ProviderId
from ccp.schemas.event_types import canonical
from ccp.server.domain.parties import OWNED_PROVIDER, OWNED_WMI, Party, PartyRole


class EventKind(StrEnum):
    """What this pool tells of, under the published names: the first three the vehicle's maker, the others the eMSP."""

    CREATED = "oem.contract.created"
    UPDATED = "oem.contract.updated"
    DELETED = "oem.contract.deleted"
    DELIVERED = "emsp.contract.delivered.to.oem"
    CREATED_SENT = "emsp.contract.created.sent.to.oem"
    UPDATED_SENT = "emsp.contract.updated.sent.to.oem"
    DELETED_SENT = "emsp.contract.deleted.sent.to.oem"
    REJECTED = "emsp.contract.rejected.by.oem"
    QUEUED = "emsp.contract.queued.to.oem"
    PROVISIONING_UPDATED = "emsp.prov.cert.updated"
    PROVISIONING_DELETED = "emsp.prov.cert.deleted"
    FACTORY_RESET = "emsp.prov.cert.factory.reset"

    @property
    def role(self) -> PartyRole:
        """Who is told."""
        return PartyRole.OEM if self.startswith("oem.") else PartyRole.EMSP


@dataclass(frozen=True, slots=True)
class Webhook:
    """A subscription of a party, and the address that it is told at.

    events: names as they were subscribed to. wmis, provider_ids: filters within the party's own; empty: all of these.
    secret: key of the HMAC over what is sent, UTF-8.
    """

    id: str
    client_id: str
    url: str
    description: str
    events: tuple[str, ...]
    wmis: tuple[WMI, ...]
    provider_ids: tuple[ProviderId, ...]
    metadata: dict[str, Any]
    api_version: str
    enabled: bool
    secret: str = field(repr=False)
    created_at: datetime
    updated_at: datetime

    def name_of(self, kind: EventKind) -> str | None:
        """The name under which it is told of an event; None where it did not subscribe to it."""
        return next((name for name in self.events if canonical(name) == kind), None)


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A webhook, and the party whose it is, as both are registered now."""

    webhook: Webhook
    party: Party


def owner_key(kind: EventKind, emaid: EMAID, pcid: PCID) -> tuple[str, str]:
    """The id whose owner is told of an event, with its kind as `ccp.server.domain.parties.owned_ids` has it."""
    return (OWNED_WMI, pcid.wmi) if kind.role is PartyRole.OEM else (OWNED_PROVIDER, emaid.provider)


def event_name_for(webhook: Webhook, party: Party, kind: EventKind, emaid: EMAID, pcid: PCID) -> str | None:
    """The name under which a webhook is told of an event; None where it is not: by subscription, ownership or filter.

    party: whose webhook it is, as it is registered now.
    """
    if not (webhook.enabled and party.enabled and kind.role in party.roles):
        return None
    if kind.role is PartyRole.OEM:
        theirs = pcid.wmi in party.wmis and (not webhook.wmis or pcid.wmi in webhook.wmis)
    else:
        owner = emaid.provider
        theirs = owner in party.provider_ids and (not webhook.provider_ids or owner in webhook.provider_ids)
    return webhook.name_of(kind) if theirs else None


def matching_webhooks(
    subscribers: Iterable[Subscriber], kind: EventKind, emaid: EMAID, pcid: PCID
) -> list[tuple[Webhook, str]]:
    """The webhooks that are to be told of an event, each with the name it knows it by."""
    return [
        (each.webhook, name)
        for each in subscribers
        if (name := event_name_for(each.webhook, each.party, kind, emaid, pcid)) is not None
    ]
