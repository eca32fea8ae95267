"""The events that partners can subscribe to, by the names that are published. Pure.

Two families name the same events for an eMSP: `emsp.…` and the older `mo.…`. A subscriber is told in the family that it
asked for.
Source: OPNC API 1.0, eventEnum and the webhook's payload.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from ccp.errors import FieldError

API_VERSION: Final = "v1"
"""The only format of events."""

OEM: Final = ("oem.contract.created", "oem.contract.updated", "oem.contract.deleted")
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
)
_DEPRECATED: Final = {"emsp.prov.cert.updated.factory.reset": "emsp.prov.cert.factory.reset"}
"""Old names that may still be subscribed to, each with the current one."""
ROOT: Final = ("root.cert.added", "root.cert.expired", "root.cert.revoked")
_ALL_EMSP: Final = (*EMSP, *_DEPRECATED)
KNOWN: Final = (*OEM, *_ALL_EMSP, *(name.replace("emsp.", "mo.", 1) for name in _ALL_EMSP), *ROOT)
"""Every name that may be subscribed to. Of those of roots none is sent yet."""

_SHOWN: Final = 3  # Of the names that are none, so that the sentence stays one.


def published(name: str) -> str:
    """The current name of the event, in the current family."""
    name = name.replace("mo.", "emsp.", 1) if name.startswith("mo.") else name
    return _DEPRECATED.get(name, name)


def audience(name: str) -> str | None:
    """The role that an event is for, "oem" or "emsp"; None for everybody."""
    family = published(name).partition(".")[0]
    return family if family in ("oem", "emsp") else None


def parse(names: Iterable[str]) -> tuple[str, ...]:
    """Names as they were subscribed, each once. Raises FieldError."""
    given = tuple(dict.fromkeys(names))
    if not given:
        raise FieldError("enabledEvents : must name an event at least")
    unknown = [json.dumps(name[:50]) for name in given if name not in KNOWN]
    if unknown:
        more = " and others" if len(unknown) > _SHOWN else ""
        raise FieldError(f"enabledEvents : unknown {', '.join(unknown[:_SHOWN])}{more}; known are {', '.join(KNOWN)}")
    if len({published(name) for name in given}) < len(given):
        raise FieldError("enabledEvents : names the same event twice, as emsp.… and mo.… or by its deprecated name")
    return given
