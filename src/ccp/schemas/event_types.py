"""Names of the events that partners can subscribe to. Pure.

Two families name the same events for an eMSP: `emsp.…` and the older `mo.…`. A subscriber receives events under the
family in which it subscribed. The events of roots are for every role. `oem.vehicle.contested`,
`emsp.contract.expiring` and `emsp.contract.undeliverable` are not in the published description.
Source: OPNC API 1.0, eventEnum and the webhook's payload.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from ccp.errors import FieldError

PING: Final = "webhook.ping"
"""Type of the test event. It is not subscribed to."""

API_VERSION: Final = "v1"
"""The only format of events."""

OEM: Final = ("oem.contract.created", "oem.contract.updated", "oem.contract.deleted", "oem.vehicle.contested")
EMSP: Final = (
    "emsp.contract.delivered.to.oem",
    "emsp.contract.created.sent.to.oem",
    "emsp.contract.updated.sent.to.oem",
    "emsp.contract.deleted.sent.to.oem",
    "emsp.contract.rejected.by.oem",
    "emsp.contract.queued.to.oem",
    "emsp.prov.cert.updated",
    "emsp.prov.cert.deleted",
    "emsp.prov.cert.factory.reset",
    "emsp.contract.expiring",
    "emsp.contract.undeliverable",
)
_DEPRECATED: Final = {"emsp.prov.cert.updated.factory.reset": "emsp.prov.cert.factory.reset"}
"""Current names by deprecated name. Both may be subscribed to."""
ROOT: Final = ("root.cert.added", "root.cert.expired", "root.cert.revoked")
_ALL_EMSP: Final = (*EMSP, *_DEPRECATED)
KNOWN: Final = (*OEM, *_ALL_EMSP, *(name.replace("emsp.", "mo.", 1) for name in _ALL_EMSP), *ROOT)
"""Every name that may be subscribed to."""

_MAX_SHOWN: Final = 3  # Unknown names in an error sentence.


def canonical(name: str) -> str:
    """Return the current name of the event, in the family `emsp.…`."""
    name = name.replace("mo.", "emsp.", 1) if name.startswith("mo.") else name
    return _DEPRECATED.get(name, name)


def audience(name: str) -> str | None:
    """Return the role that an event is for, "oem" or "emsp"; None if it is for every role."""
    family = canonical(name).partition(".")[0]
    return family if family in ("oem", "emsp") else None


def parse(names: Iterable[str]) -> tuple[str, ...]:
    """Validate the names of a subscription and remove duplicates. Raises FieldError."""
    given = tuple(dict.fromkeys(names))
    if not given:
        raise FieldError("enabledEvents : must name at least one event")
    unknown = [json.dumps(name[:50]) for name in given if name not in KNOWN]
    if unknown:
        more = " and others" if len(unknown) > _MAX_SHOWN else ""
        raise FieldError(
            f"enabledEvents : unknown {', '.join(unknown[:_MAX_SHOWN])}{more}; known are {', '.join(KNOWN)}"
        )
    if len({canonical(name) for name in given}) < len(given):
        raise FieldError("enabledEvents : names the same event twice, as emsp.… and mo.… or by its deprecated name")
    return given
