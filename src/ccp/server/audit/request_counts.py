"""Writes the counts of requests to the database, off the request path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final, TypeAlias

from ccp.server.audit.buffered_writer import BufferedWriter
from ccp.server.request_counts import Counted, RequestCounts
from ccp.server.runtime.background import BackgroundTasks, PeriodicTask
from ccp.server.runtime.clock import Clock
from ccp.server.storage import Store
from ccp.server.storage.queries import request_counts as queries

_INTERVAL: Final = 5.0  # Seconds.
_PURGE_INTERVAL: Final = 3600.0
_MAX_PENDING: Final = 10_000  # Counters in memory while the database does not answer.
_BATCH: Final = 100  # Counters in one transaction.

_HourCount: TypeAlias = tuple[tuple[int, Counted], int]
"""Hour and what is counted, and the number of requests."""


class RequestCountWriter:
    """Adds the counts of one worker to those of all workers every few seconds, and at shutdown.

    Numbers that a killed process has not written are lost. A write of unknown outcome is repeated, so its numbers may
    count twice.
    """

    def __init__(
        self,
        store: Store,
        counts: RequestCounts,
        clock: Clock,
        checked_now: Callable[[], Awaitable[datetime]],
        interval: float = _INTERVAL,
    ) -> None:
        """checked_now: the time, if it is plausible; nothing is removed under another one. interval: seconds."""
        self._store = store
        self._counts = counts
        self._clock = clock
        self._checked_now = checked_now
        self._writer = BufferedWriter[_HourCount](
            "request_count",
            lambda rows: store.write(queries.add(dict(rows))),
            task="request_counts",
            interval=interval,
            max_rows=_MAX_PENDING,
            batch=_BATCH,
            collect=self._collect,
            merged=lambda before, more: (before[0], before[1] + more[1]),
        )

    def open(self, background: BackgroundTasks) -> None:
        """Start the tasks."""
        self._writer.open(background)
        background.add(PeriodicTask("request_counts_purge", self._purge, _PURGE_INTERVAL))

    async def close(self) -> None:
        """Stop writing periodically, and write a last time."""
        await self._writer.close()

    async def flush(self) -> None:
        """Write what was counted. Raises Unavailable; the numbers are kept for the next call."""
        await self._writer.flush()

    def _collect(self) -> None:
        hour = queries.hour_of(self._clock())
        for counted, number in self._counts.take().items():
            key = hour, counted
            self._writer.merge(key, (key, number))

    async def _purge(self) -> None:
        await self._store.write(queries.remove_before(await self._checked_now() - queries.KEPT))
