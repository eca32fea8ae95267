"""Finds stored contracts whose eMSP has to be told something: they expire soon, or are revoked.

Every worker searches, at random times; the database decides which one writes an event. Only contracts of providers that
subscribed to an event are reported, so a provider that subscribes later learns what is due then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from ccp.ids import EMAID
from ccp.server.domain.subscriptions import EventKind
from ccp.server.events.subscribers import Subscribers
from ccp.server.runtime.background import PeriodicTask
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.storage.queries import contract_notices as queries
from ccp.server.storage.queries import contract_portions
from ccp.server.storage.queries.contract_portions import (
    FIRST_CERTIFICATE,
    FIRST_CONTRACT,
    Cursor,
    Portion,
)

_JITTER: Final = 0.25


class ContractChecks:
    """Writes `emsp.contract.expiring`, and `emsp.contract.undeliverable` for revoked contracts."""

    def __init__(
        self,
        store: Store,
        subscribers: Subscribers,
        settings: Settings,
        clock: Callable[[], datetime],
        checked_now: Callable[[], Awaitable[datetime]],
        changed: Callable[[], None],
    ) -> None:
        """clock: gives the time of an event while its vehicle is locked. checked_now: raises Unavailable if the time is
        implausible. changed: called after an event was written.
        """
        self._store = store
        self._subscribers = subscribers
        self._days = tuple(sorted(set(settings.event_expiring_days)))
        self._interval = settings.event_check_interval
        self._clock = clock
        self._checked_now = checked_now
        self._changed = changed

    def task(self) -> PeriodicTask:
        """Background task that searches at the interval of the settings."""
        return PeriodicTask("contract_checks", self.run, self._interval, jitter=_JITTER)

    async def run(self) -> None:
        """Search once. Raises Unavailable."""
        now = await self._checked_now()
        if self._days and self._subscribers.has_any(EventKind.EXPIRING):
            after: Cursor | None = FIRST_CONTRACT
            while after is not None:
                found = await self._store.read(queries.expiring(self._days, now, after))
                for emaid in self._wanted(found, EventKind.EXPIRING):
                    if await self._store.write(queries.report_expiring(emaid, self._days, self._clock)):
                        self._changed()
                after = found.following
        if self._subscribers.has_any(EventKind.UNDELIVERABLE):
            after = FIRST_CERTIFICATE
            while after is not None:
                found = await self._store.read(contract_portions.revoked(after, unreported=True))
                for emaid in self._wanted(found, EventKind.UNDELIVERABLE):
                    if await self._store.write(queries.report_revoked(emaid, self._clock)):
                        self._changed()
                after = found.following

    def _wanted(self, found: Portion, kind: EventKind) -> list[EMAID]:
        return [emaid for emaid in found.emaids if self._subscribers.wants(kind, emaid)]
