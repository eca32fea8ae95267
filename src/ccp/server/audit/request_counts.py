"""Writes the counts of requests to the database, off the request path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

import structlog

from ccp.errors import CCPError
from ccp.server.request_counts import Counted, RequestCounts
from ccp.server.runtime.background import BackgroundTasks, PeriodicTask, Supervised
from ccp.server.runtime.clock import Clock
from ccp.server.storage import Store
from ccp.server.storage.queries import request_counts as queries

_log = structlog.get_logger("ccp.server.audit.request_counts")

_INTERVAL: Final = 5.0  # Seconds.
_PURGE_INTERVAL: Final = 3600.0
_MAX_PENDING: Final = 10_000  # Counters in memory while the database does not answer.


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
        self._interval = interval
        self._pending: dict[tuple[int, Counted], int] = {}
        self._task: Supervised | None = None

    def open(self, background: BackgroundTasks) -> None:
        """Start the tasks."""
        # Not interruptible: a cancelled write might commit without this process knowing.
        self._task = background.add(PeriodicTask("request_counts", self.flush, self._interval, interruptible=False))
        background.add(PeriodicTask("request_counts_purge", self._purge, _PURGE_INTERVAL))

    async def close(self) -> None:
        """Stop writing periodically, and write a last time."""
        if self._task is not None:
            await self._task.stop()
            self._task = None
        try:
            await self.flush()
        except CCPError as exc:
            _log.warning("request counts lost", counters=len(self._pending), reason=str(exc))

    async def flush(self) -> None:
        """Write what was counted. Raises Unavailable; the numbers are kept for the next call."""
        hour = queries.hour_of(self._clock())
        for counted, number in self._counts.take().items():
            key = hour, counted
            if key in self._pending or len(self._pending) < _MAX_PENDING:
                self._pending[key] = self._pending.get(key, 0) + number
        if self._pending:
            await self._store.write(queries.add(self._pending))
            self._pending = {}

    async def _purge(self) -> None:
        await self._store.write(queries.remove_before(await self._checked_now() - queries.KEPT))
