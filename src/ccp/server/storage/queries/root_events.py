"""Events of trust anchors in the outbox.

They belong to no vehicle. Their rows have the empty text as PCID and the number of the change of the anchors as
revision, so they are sent in the order of the changes.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Final

from ccp.errors import ChainError
from ccp.server.domain.event_payloads import root_members, root_namespace
from ccp.server.domain.root_certificates import is_own_issuer
from ccp.server.domain.subscriptions import EventKind
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries.change_counters import ChangeCounter, next_number
from ccp.server.storage.queries.unknown_values import known
from ccp.server.storage.queries.vehicle_lock import microseconds
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import AnchorRole

NO_VEHICLE: Final = ""
"""PCID of rows of the outbox and of deliveries that are about a trust anchor."""

INSERT: Final = """
insert into outbox (pcid, rev, kind, emaid, payload, created_at, lease_until, attempts)
values ($1, $2, $3, '', $4, $5, 0, 0)
"""
"""Parameters: NO_VEHICLE, number of the change, kind, payload, time."""


def record_change(kind: EventKind, certificate: bytes, role: str, *, is_root: bool, now: datetime) -> Query[None]:
    """Count a change of the anchors, and write its event if the anchor is a root. Part of every change of an anchor.

    certificate: DER. role: value of an AnchorRole. A root that this release cannot read causes no event, and neither
    does an anchor that another root has issued, which no list of roots has.
    """
    number = yield from next_number(ChangeCounter.ANCHORS)
    trusted_for = known(AnchorRole, role, "trust_anchor.role")
    if not is_root or trusted_for is None:
        return
    try:
        root = Certificate.load(bytes(certificate))
        if not is_own_issuer(root):
            return
        payload = {"namespace": root_namespace(root), "members": root_members(root, trusted_for)}
    except ChainError:
        return
    yield INSERT, (NO_VEHICLE, number, kind.value, json.dumps(payload), microseconds(now))
