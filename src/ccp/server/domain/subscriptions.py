"""Event types, webhooks, and the matching of subscriptions. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from ccp.ids import EMAID, PCID, WMI, ProviderId
from ccp.schemas.event_types import canonical
from ccp.server.domain.parties import OWNED_PROVIDER, OWNED_WMI, Party, PartyRole


class EventKind(StrEnum):
    """The event types by name: `oem.…` for OEMs, `emsp.…` for eMSPs, `root.…` for parties of every role."""

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
    EXPIRING = "emsp.contract.expiring"
    UNDELIVERABLE = "emsp.contract.undeliverable"
    CONTESTED = "oem.vehicle.contested"
    ROOT_ADDED = "root.cert.added"
    ROOT_EXPIRED = "root.cert.expired"
    ROOT_REVOKED = "root.cert.revoked"

    @property
    def role(self) -> PartyRole | None:
        """The role of the parties that may subscribe to the event; None for every role."""
        if self in ROOT_KINDS:
            return None
        return PartyRole.OEM if self.startswith("oem.") else PartyRole.EMSP


ROOT_KINDS: Final = frozenset({EventKind.ROOT_ADDED, EventKind.ROOT_EXPIRED, EventKind.ROOT_REVOKED})
"""The event types that are about a trust anchor, not about a contract."""

MAX_PREVIOUS_SECRETS: Final = 2
"""Secrets of a webhook that are valid besides the current one. Each is another signature in each request."""


class SignatureFormat(StrEnum):
    """Form of the signatures in X-Operator-Signature. SHA256: `sha256=` and hexadecimal. BARE: hexadecimal."""

    SHA256 = "sha256"
    BARE = "bare"


@dataclass(frozen=True, slots=True)
class PreviousSecret:
    """A replaced secret that stays valid until a time."""

    value: str = field(repr=False)
    valid_until: datetime


class UndeliverableReason(StrEnum):
    """Why a vehicle does not get a contract, in the payload of `emsp.contract.undeliverable`.

    stale: made for another provisioning key than the vehicle has now. contested: another provider's contract is the
    vehicle's default, and the vehicle's OEM has not chosen it.
    """

    REVOKED = "revoked"
    STALE = "stale"
    CONTESTED = "contested"


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook of a party.

    events: names as the party subscribed to them. wmis, provider_ids: filters within the party's ids; empty for all.
    secret: HMAC key for the request body, UTF-8. previous_secrets: newest first; they may have expired. damage: a
    sentence about a stored secret that cannot be decrypted; then `secret` is empty, nothing is sent, and an edit keeps
    what is stored until the webhook gets another secret.
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
    signature_format: SignatureFormat = SignatureFormat.SHA256
    previous_secrets: tuple[PreviousSecret, ...] = ()
    damage: str | None = None

    def live_previous_secrets(self, now: datetime) -> tuple[PreviousSecret, ...]:
        """The replaced secrets that are valid now, newest first."""
        return tuple(each for each in self.previous_secrets if each.valid_until > now)

    def valid_secrets(self, now: datetime) -> tuple[str, ...]:
        """The secrets that sign now, newest first; at least the current one."""
        return self.secret, *(each.value for each in self.live_previous_secrets(now))

    def subscribed_name(self, kind: EventKind) -> str | None:
        """The name under which the webhook subscribed to an event; None if it did not."""
        return next((name for name in self.events if canonical(name) == kind), None)


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A webhook and its party, in their current state."""

    webhook: Webhook
    party: Party


def owner_key(kind: EventKind, emaid: EMAID, pcid: PCID) -> tuple[str, str]:
    """The id whose owner receives an event of a contract, with its kind.

    See `ccp.server.domain.parties.owned_ids`.
    """
    return (OWNED_WMI, pcid.wmi) if kind.role is PartyRole.OEM else (OWNED_PROVIDER, emaid.provider)


def event_name_for(webhook: Webhook, party: Party, kind: EventKind, emaid: EMAID, pcid: PCID) -> str | None:
    """The name under which a webhook receives an event of a contract.

    None if subscription, ownership or filter exclude it.

    party: the webhook's, in its current state.
    """
    if not (webhook.enabled and party.enabled and kind.role in party.roles):
        return None
    if kind.role is PartyRole.OEM:
        matches = pcid.wmi in party.wmis and (not webhook.wmis or pcid.wmi in webhook.wmis)
    else:
        owner = emaid.provider
        matches = owner in party.provider_ids and (not webhook.provider_ids or owner in webhook.provider_ids)
    return webhook.subscribed_name(kind) if matches else None


def matching_webhooks(
    subscribers: Iterable[Subscriber], kind: EventKind, emaid: EMAID, pcid: PCID
) -> list[tuple[Webhook, str]]:
    """The webhooks that receive an event of a contract, each with the name under which it subscribed."""
    return [
        (subscriber.webhook, name)
        for subscriber in subscribers
        if (name := event_name_for(subscriber.webhook, subscriber.party, kind, emaid, pcid)) is not None
    ]


def matching_root_webhooks(subscribers: Iterable[Subscriber], kind: EventKind) -> list[tuple[Webhook, str]]:
    """The webhooks that receive an event of a trust anchor, each with the name under which it subscribed."""
    return [
        (subscriber.webhook, name)
        for subscriber in subscribers
        if subscriber.webhook.enabled
        and subscriber.party.enabled
        and (name := subscriber.webhook.subscribed_name(kind)) is not None
    ]
