"""Events without a write transaction: a contract was delivered, or could not be. No request waits for them."""

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
from ccp.server.storage.queries import contract_notices, outbox
from ccp.server.storage.queries.contract_notices import Undeliverable

_log = structlog.get_logger("ccp.server.events")

_FLUSH_INTERVAL: Final = 0.2
_BATCH: Final = 50  # Vehicles that one transaction locks.
_MAX_BUFFERED: Final = 10_000  # Some 5 MB. Memory does not make up for a database that is away for long.

_MAX_UNDELIVERABLE: Final = 1_000  # Further ones are reported when their vehicle asks again.
_MAX_REPORTED: Final = 2_000

_Notice = tuple[EMAID, PCID, Namespace]


class EventSink(Protocol):
    """Accepts what the pool's rules report. The methods return at once."""

    def contracts_delivered(self, contracts: Iterable[SignedContract], now: datetime) -> None:
        """Report contracts that were delivered to a vehicle, or to its OEM."""

    def contract_undeliverable(self, found: Undeliverable, now: datetime) -> None:
        """Report a contract that could not be delivered to a vehicle."""

    def change_committed(self) -> None:
        """Report that a transaction with an event was committed."""


class NullSink:
    """EventSink that discards everything, for commands."""

    def contracts_delivered(self, contracts: Iterable[SignedContract], now: datetime) -> None:
        """Discard."""

    def contract_undeliverable(self, found: Undeliverable, now: datetime) -> None:
        """Discard."""

    def change_committed(self) -> None:
        """Discard."""


class BufferedNotifier:
    """EventSink that buffers deliveries and writes them in batches. A killed process loses the last 0.2 seconds."""

    def __init__(self, store: Store, subscribers: Subscribers) -> None:
        self._store = store
        self._subscribers = subscribers
        self.new_events = asyncio.Event()
        """Set when the outbox has new events."""
        self._buffer: list[tuple[_Notice, datetime]] = []
        self._dropped = 0
        self._undeliverable: dict[Undeliverable, datetime] = {}
        self._reported: dict[Undeliverable, None] = {}
        """What was written of late: a vehicle may ask again and again."""

    @property
    def queued(self) -> int:
        """The number of events that are not written yet."""
        return len(self._buffer) + len(self._undeliverable)

    def contracts_delivered(self, contracts: Iterable[SignedContract], now: datetime) -> None:
        """Buffer an event for each contract whose provider subscribed to it."""
        wanted = [c for c in contracts if self._subscribers.wants(EventKind.DELIVERED, c.emaid)]
        # An OEM may get several variants of one contract in one response: that is one event per namespace.
        for notice in sorted({(contract.emaid, contract.pcid, contract.namespace) for contract in wanted}):
            if len(self._buffer) < _MAX_BUFFERED:
                self._buffer.append((notice, now))
            else:
                self._dropped += 1

    def contract_undeliverable(self, found: Undeliverable, now: datetime) -> None:
        """Buffer the event of a contract whose provider subscribed to it."""
        if (
            self._subscribers.wants(EventKind.UNDELIVERABLE, found.emaid)
            and found not in self._reported
            and len(self._undeliverable) < _MAX_UNDELIVERABLE
        ):
            self._undeliverable.setdefault(found, now)

    def change_committed(self) -> None:
        """Wake the dispatcher."""
        self.new_events.set()

    def flush_task(self) -> PeriodicTask:
        """Background task that writes the buffer every 0.2 seconds."""
        return PeriodicTask("delivered_events", self.flush, _FLUSH_INTERVAL, interruptible=False)

    async def flush(self) -> None:
        """Write the buffer. Raises Unavailable; events that were not written stay in the buffer."""
        if self._dropped:
            _log.warning("events dropped", kind=EventKind.DELIVERED.value, events=self._dropped)
            self._dropped = 0
        while self._buffer:
            batch = self._buffer[:_BATCH]
            notices = [(EventKind.DELIVERED, *notice, now) for notice, now in batch]
            # Removed before the write: a batch that the database rejects permanently must not block the rest.
            del self._buffer[:_BATCH]
            try:
                await self._store.write(outbox.store_events(notices))
            except CCPError:
                self._buffer[:0] = batch  # If the outcome is unknown, the events are sent twice rather than never.
                raise
            self.new_events.set()
        await self._flush_undeliverable()

    async def _flush_undeliverable(self) -> None:
        while self._undeliverable:
            found, now = next(iter(self._undeliverable.items()))
            # Removed before the write, as above.
            del self._undeliverable[found]
            try:
                written = await self._store.write(contract_notices.report_undeliverable(found, now))
            except CCPError:
                self._undeliverable[found] = now
                raise
            if written:
                self.new_events.set()
            if len(self._reported) >= _MAX_REPORTED:
                self._reported.pop(next(iter(self._reported)))
            self._reported[found] = None

    async def close(self) -> None:
        """Write the buffer a last time."""
        try:
            await self.flush()
        except CCPError as exc:
            _log.warning("events lost", events=len(self._buffer), reason=str(exc))
