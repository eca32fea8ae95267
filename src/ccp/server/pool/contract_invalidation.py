"""What happens to a vehicle's provisioning certificate, and which contracts that makes worthless. Pure.

Contracts are encrypted for the key of that certificate. When it is deleted, renewed with a new key, or lost in a
factory reset, the vehicle cannot use what was encrypted for the old one.
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


class Change(StrEnum):
    """What happened to a vehicle's provisioning certificate, by the current name of its event."""

    DELETED = "prov.cert.deleted"
    UPDATED = "prov.cert.updated"
    FACTORY_RESET = "prov.cert.factory.reset"


TOLD_AS: Final = {
    Change.DELETED: EventKind.PROVISIONING_DELETED,
    Change.UPDATED: EventKind.PROVISIONING_UPDATED,
    Change.FACTORY_RESET: EventKind.FACTORY_RESET,
}
"""The event for the eMSPs that lose a contract by it."""

_CLOCKS_DIFFER: Final = timedelta(minutes=5)
_DEPRECATED: Final = {"prov.cert.updated.factory.reset": Change.FACTORY_RESET}
_OWNERS: Final = ("emsp", "mo")
# Letters of every name that could be meant for an event of ours, whatever stands between them.
_MEANT: Final = re.compile("provcert|factoryreset")

EVENT_NAMES: Final = tuple(f"{owner}.{name}" for owner in _OWNERS for name in (*Change, *_DEPRECATED))
"""Names of the events that remove contracts: current and deprecated ones, in both families."""


def change_of(event_name: str) -> Change | None:
    """What an event of the Provisioning Certificate Pool tells of. None for one that is not about such certificates.

    Raises FieldError for an unknown name of an event about provisioning certificates: to take it and do nothing would
    leave contracts that their vehicle cannot use.
    """
    owner, _, name = event_name.partition(".")
    if owner in _OWNERS:
        if name in _DEPRECATED:
            return _DEPRECATED[name]
        if name in set(Change):
            return Change(name)
    if _MEANT.search(re.sub("[^a-z]", "", event_name.lower())):
        raise FieldError(f"eventType : unknown; the events of provisioning certificates are {', '.join(EVENT_NAMES)}")
    return None


@dataclass(frozen=True, slots=True)
class VehicleEvent:
    """until: what was published later than this is no concern of the event. namespace: None for either edition."""

    change: Change
    pcid: PCID
    until: datetime
    namespace: Namespace | None


def made_stale(event: VehicleEvent, current: ProvisioningChain | None, now: datetime) -> Callable[[Binding], bool]:
    """Says of a variant whether the event makes it worthless.

    A variant that was published later than now was published by a clock that was wrong, so it counts as earlier.
    current: what the vehicle has now, as far as that is known. Deleted and factory reset: all go. Updated: those for
    another key than the vehicle has now; those of the other edition have a certificate of their own. Where either key
    is not known, those published before the event go too: their eMSP is told of the event as well and signs anew, while
    a contract that the vehicle cannot decrypt would be delivered again and again.
    """

    def stale(binding: Binding) -> bool:
        if event.change is Change.UPDATED:
            if event.namespace not in (None, binding.namespace):
                return False
            key = current.key_for(binding.namespace) if current else None
            if key is not None and binding.provisioning_key is not None:
                return key != binding.provisioning_key
        return binding.published_at <= event.until or binding.published_at > now + _CLOCKS_DIFFER

    return stale
