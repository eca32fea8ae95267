"""Events without a change: that a contract was handed out. The one who asked for it never waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import Final, Protocol

import structlog

from ccp.errors import CCPError
from ccp.ids import EMAID, PCID, Namespace
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.subscriptions import EventKind
from ccp.server.events.subscribers import Subscribers
from ccp.server.runtime.background import PeriodicTask
from ccp.server.storage import Store
from ccp.server.storage.queries import outbox

_log = structlog.get_logger("ccp.server.events")

_EVERY_SECONDS: Final = 0.2
_GROUP: Final = 50  # Vehicles that one transaction locks.
_MOST: Final = 10_000  # Some 5 MB. A database that is away for long is not made up for out of memory.

_Key = tuple[EMAID, PCID, Namespace]


class Outlet(Protocol):
    """What the pool's rules know of events beside those of its changes. Nothing here waits for anything."""

    def handed_out(self, contracts: Iterable[SignedContract], at: datetime) -> None:
        """Contracts that a vehicle, or its maker, was given."""

    def changed(self) -> None:
        """A change was made that has an event."""


class Nobody:
    """For commands."""

    def handed_out(self, contracts: Iterable[SignedContract], at: datetime) -> None:
        pass

    def changed(self) -> None:
        pass


class HandedOut:
    """Gathers what was handed out and writes it in groups; a process that is killed loses the last 0.2 seconds."""

    def __init__(self, store: Store, subscribers: Subscribers) -> None:
        self._store = store
        self._subscribers = subscribers
        self.news = asyncio.Event()
        """Set when there is something to send."""
        self._gathered: list[tuple[_Key, datetime]] = []
        self._dropped = 0

    def handed_out(self, contracts: Iterable[SignedContract], at: datetime) -> None:
        wanted = [c for c in contracts if self._subscribers.wants(EventKind.HANDED_OUT, c.emaid)]
        # The maker may get several variants of one contract with one answer: that is one event for each namespace.
        for key in sorted({(contract.emaid, contract.pcid, contract.namespace) for contract in wanted}):
            if len(self._gathered) < _MOST:
                self._gathered.append((key, at))
            else:
                self._dropped += 1

    def changed(self) -> None:
        self.news.set()

    def flushing(self) -> PeriodicTask:
        """Writes what was gathered, every moment."""
        return PeriodicTask("delivered_events", self.flush, _EVERY_SECONDS, interruptible=False)

    async def flush(self) -> None:
        """Write everything that was gathered. Raises Unavailable; what is not written then stays gathered."""
        if self._dropped:
            _log.warning("events dropped: too many at a time", kind=EventKind.HANDED_OUT.value, events=self._dropped)
            self._dropped = 0
        while self._gathered:
            group = self._gathered[:_GROUP]
            told = [(EventKind.HANDED_OUT, *key, at) for key, at in group]
            # Taken out first: what the database refuses for good must not stand before all others for ever.
            del self._gathered[:_GROUP]
            try:
                await self._store.write(outbox.store_events(told))
            except CCPError:
                self._gathered[:0] = group  # Where nobody knows whether it has them they are told twice, not never.
                raise
            self.news.set()

    async def close(self) -> None:
        try:
            await self.flush()
        except CCPError as exc:
            _log.warning("events lost", events=len(self._gathered), reason=str(exc))
