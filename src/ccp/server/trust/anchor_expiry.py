"""Reports the expiry of trust anchors to partners, once for each root and role."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

import structlog

from ccp.server.runtime.background import PeriodicTask
from ccp.server.storage import Store
from ccp.server.storage.queries import anchors
from ccp.server.trust.anchors import Expiry, TrustStore
from ccp.x509.profiles import AnchorRole

_log = structlog.get_logger("ccp.server.trust.anchors")

_JITTER: Final = 0.25  # Keeps workers apart: the first one reports, the others find it done.


class AnchorExpiry:
    """Compares the anchors in memory with the clock; the database decides which process reports an expiry."""

    def __init__(self, store: Store, trust: TrustStore, clock: Callable[[], Awaitable[datetime]]) -> None:
        """clock: raises Unavailable if the time is implausible."""
        self._store = store
        self._trust = trust
        self._clock = clock
        self._version = 0
        self._reported: set[tuple[AnchorRole, str]] = set()
        """Roots that need no look into the database: expired anchors of this version of the snapshot, once handled."""

    def task(self, interval: float) -> PeriodicTask:
        """Background task that reports expired roots. interval: seconds."""
        return PeriodicTask("anchor_expiry", self.run, interval, jitter=_JITTER, first_delay=min(1.0, interval))

    async def run(self) -> None:
        """Write the event of each root that has expired. Raises Unavailable."""
        now = await self._clock()
        snapshot = self._trust.anchors
        expired = {
            (role, anchor.certificate.fingerprint)
            for anchor in snapshot.anchors
            if Expiry.of(anchor.certificate, now) is Expiry.EXPIRED
            for role in anchor.roles
        }
        # A root that was removed and added again is reported again; the snapshot in between may have been missed.
        if snapshot.version != self._version:
            self._reported.clear()
            self._version = snapshot.version
        for role, fingerprint in sorted(expired - self._reported, key=lambda key: (key[0].value, key[1])):
            if await self._store.write(anchors.report_expiry(role.value, fingerprint, now)):
                _log.warning("anchor expired", role=role.value, fingerprint=fingerprint)
            self._reported.add((role, fingerprint))
