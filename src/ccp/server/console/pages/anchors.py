"""Trust anchors: what the pool trusts, where it is from, when it ends."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from starlette.responses import Response

from ccp.errors import ChainError
from ccp.server.console.application import Console
from ccp.server.console.paging import portion
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.visit import Visit
from ccp.server.storage.queries import anchors
from ccp.server.storage.queries.anchors import TrustedCertificate
from ccp.server.trust.anchors import Expiry, expiry_warnings
from ccp.x509.certificates import Certificate

_ROWS: Final = 40
_WARNINGS: Final = 10
KINDS: Final = {Expiry.VALID: "ok", Expiry.SOON: "warn", Expiry.EXPIRED: "bad", Expiry.NOT_YET: "bad"}
"""Class of the style sheet by state."""
_NAMES: Final = {"v2g": "V2G", "emsp": "eMSP", "oem": "OEM"}


@dataclass(frozen=True, slots=True)
class AnchorRow:
    """A trusted certificate as the page shows it. Times are None for one that this release cannot read."""

    label: str
    subject: str
    is_root: bool
    fingerprint: str
    source: str
    added_at: datetime
    kind: str
    state: str
    not_before: datetime | None = None
    not_after: datetime | None = None


def register(console: Console, parts: ConsoleParts) -> None:
    """Register the page."""

    @console.page("/anchors", "Trust anchors", navigation=True)
    async def show(visit: Visit) -> Response:
        entries = sorted(await parts.store.read(anchors.list_all()), key=lambda entry: (entry.role, entry.label))
        totals = Counter(entry.role for entry in entries)
        shown = portion(visit, entries, _ROWS)
        groups: dict[str, list[AnchorRow]] = {}
        for entry in shown.items:
            groups.setdefault(entry.role, []).append(_row(entry, visit.now))
        warnings = expiry_warnings(parts.trust.anchors, visit.now)
        names = {role: _NAMES.get(role, role) for role in groups}
        return visit.render(
            "anchors.html",
            groups=groups.items(),
            totals=totals,
            shown=shown,
            names=names,
            warnings=warnings[:_WARNINGS],
            more=len(warnings[_WARNINGS:]),
        )


def _row(entry: TrustedCertificate, now: datetime) -> AnchorRow:
    facts = (entry.is_root, entry.fingerprint, entry.source, entry.added_at)
    try:
        certificate = Certificate.load(entry.certificate)
    except ChainError:
        return AnchorRow(entry.label, "", *facts, "bad", "unreadable")
    state = Expiry.of(certificate, now)
    return AnchorRow(
        entry.label,
        certificate.subject_cn,
        *facts,
        KINDS[state],
        state.value,
        certificate.not_before,
        certificate.not_after,
    )
