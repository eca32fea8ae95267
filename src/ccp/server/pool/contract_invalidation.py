"""Provisioning events, and which stored contracts each of them invalidates. Pure.

A contract's private key is encrypted for the key of the vehicle's provisioning certificate. If that certificate is
deleted, renewed with a new key or lost in a factory reset, the vehicle cannot decrypt what was encrypted for the old
key.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from ccp.errors import FieldError
from ccp.ids import PCID, Namespace
from ccp.server.domain.subscriptions import EventKind
from ccp.server.external.provisioning_pool import ProvisioningChain
from ccp.server.storage.queries.vehicles import Binding


class ProvisioningChange(StrEnum):
    """What happened to a vehicle's provisioning certificate. Values: current names of the events."""

    DELETED = "prov.cert.deleted"
    UPDATED = "prov.cert.updated"
    FACTORY_RESET = "prov.cert.factory.reset"


EVENT_KINDS: Final = {
    ProvisioningChange.DELETED: EventKind.PROVISIONING_DELETED,
    ProvisioningChange.UPDATED: EventKind.PROVISIONING_UPDATED,
    ProvisioningChange.FACTORY_RESET: EventKind.FACTORY_RESET,
}
"""The event that the eMSPs of invalidated contracts get."""

_CLOCK_SKEW: Final = timedelta(minutes=5)
_DEPRECATED: Final = {"prov.cert.updated.factory.reset": ProvisioningChange.FACTORY_RESET}
_OWNERS: Final = ("emsp", "mo")
# Matched against the letters of a name alone: finds misspelt names of provisioning events, whatever their separators.
_PROVISIONING_LETTERS: Final = re.compile("provcert|factoryreset")

EVENT_NAMES: Final = tuple(f"{owner}.{name}" for owner in _OWNERS for name in (*ProvisioningChange, *_DEPRECATED))
"""Names of the events that invalidate contracts: current and deprecated ones, in both families."""


def parse_event_name(event_name: str) -> ProvisioningChange | None:
    """The change that an event of the Provisioning Certificate Pool reports. None for an event about something else.

    Raises FieldError for an unknown name of an event about provisioning certificates: to accept it without effect would
    leave contracts that their vehicle cannot decrypt.
    """
    owner, _, name = event_name.partition(".")
    if owner in _OWNERS:
        if name in _DEPRECATED:
            return _DEPRECATED[name]
        if name in set(ProvisioningChange):
            return ProvisioningChange(name)
    if _PROVISIONING_LETTERS.search(re.sub("[^a-z]", "", event_name.lower())):
        raise FieldError(f"eventType : unknown; the events of provisioning certificates are {', '.join(EVENT_NAMES)}")
    return None


@dataclass(frozen=True, slots=True)
class ProvisioningEvent:
    """A change of a vehicle's provisioning certificate.

    until: contracts published later than this are not affected. namespace: the edition of the certificate; None for
    both editions.
    """

    change: ProvisioningChange
    pcid: PCID
    until: datetime
    namespace: Namespace | None


def invalidates(
    event: ProvisioningEvent, current: ProvisioningChain | None, now: datetime
) -> Callable[[Binding], bool]:
    """Return a function that tells whether the event invalidates a contract variant.

    current: the vehicle's provisioning chain now, None if it is not known.

    Deleted and factory reset invalidate every variant published before the event. Updated invalidates the variants made
    for another key than the vehicle's current one; variants of the other edition belong to another certificate and
    stay. If either key is unknown, those published before the event are invalidated too: their eMSP gets an event and
    signs again, whereas a contract that the vehicle cannot decrypt would be delivered again and again.

    A publication time in the future comes from a clock that was wrong, and counts as earlier than the event.
    """

    def invalidated(binding: Binding) -> bool:
        if event.change is ProvisioningChange.UPDATED:
            if event.namespace not in (None, binding.namespace):
                return False
            key = current.key_for(binding.namespace) if current else None
            if key is not None and binding.provisioning_key is not None:
                return key != binding.provisioning_key
        return binding.published_at <= event.until or binding.published_at > now + _CLOCK_SKEW

    return invalidated
