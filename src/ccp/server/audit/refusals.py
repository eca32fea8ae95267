"""Audit of refused access: rows are written after the answer and in batches, and a flood is counted."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import structlog

from ccp.errors import CCPError
from ccp.server.runtime.background import BackgroundTasks, PeriodicTask, Supervised
from ccp.server.storage import Store
from ccp.server.storage.queries import audit as queries
from ccp.server.storage.queries.audit import UNKNOWN, Action, Entry

_log = structlog.get_logger("ccp.server.audit.refusals")

_WRITE_INTERVAL: Final = 0.25  # Seconds.
_BATCH: Final = 100  # Rows in one transaction.
_WINDOW: Final = 60.0  # Seconds.
_MAX_ROWS_PER_KIND: Final = 10  # In a window, for one caller, address, operation and outcome; the rest is counted.
_MAX_ROWS: Final = 300  # In a window, for all callers; the rest is counted.
_MAX_COUNTERS: Final = 200  # Kinds that are counted separately; further ones share a counter for each outcome.
_MAX_QUEUED: Final = 1_000  # Rows in memory while the database does not answer.

_Kind: TypeAlias = tuple[str, str | None, str | None, str]
"""Caller, operation, address, outcome."""


@dataclass(slots=True)
class _Count:
    first: Entry
    last: Entry
    number: int = 1
    shared: bool = False


@dataclass(slots=True)
class _Window:
    """until: end of the window on the monotonic clock."""

    until: float
    left: int = _MAX_ROWS
    seen: dict[_Kind, int] = field(default_factory=dict)


class AccessDenialRecorder:
    """Writes refused access to the audit trail, so that a flood costs little.

    A caller that is refused occasionally has a row for each time. In a flood each worker writes at most 300 rows a
    minute. It counts the rest by caller, address, operation and outcome, and writes one row for each count at the end
    of the minute; beyond 200 different ones it counts by outcome only. What is queued is lost when the process is
    killed: a quarter of a second of rows, a minute of counts.
    """

    def __init__(self, store: Store, window: float = _WINDOW) -> None:
        """window: seconds."""
        self._store = store
        self._window_length = window
        self._waiting: deque[Entry] = deque()
        self._counts: dict[_Kind, _Count] = {}
        self._window = _Window(0.0)
        self._task: Supervised | None = None

    @property
    def queued(self) -> int:
        """The number of entries that are not written yet."""
        return len(self._waiting)

    def record(self, entry: Entry) -> None:
        """Queue an entry without waiting. Its subject may have the members operation and address."""
        self._roll_window()
        window = self._window
        kind: _Kind = (entry.actor, entry.subject.get("operation"), entry.subject.get("address"), entry.outcome)
        seen = window.seen.get(kind, 0)
        if window.left and seen < _MAX_ROWS_PER_KIND and len(self._waiting) < _MAX_QUEUED:
            window.left -= 1
            window.seen[kind] = seen + 1
            self._waiting.append(entry)
            return
        shared = kind not in self._counts and len(self._counts) >= _MAX_COUNTERS
        if shared:
            kind = (UNKNOWN, None, None, entry.outcome)
        count = self._counts.get(kind)
        if count is None:
            self._counts[kind] = _Count(entry, entry, shared=shared)
        else:
            count.number += 1
            count.last = entry

    def open(self, background: BackgroundTasks | None = None) -> None:
        """Start the background task that writes the rows."""
        # Not interruptible: a cancelled write might commit without this process knowing.
        task = PeriodicTask("refused_access", self._write, _WRITE_INTERVAL, max_retry_delay=5.0, interruptible=False)
        self._task = (background or BackgroundTasks()).add(task)

    async def close(self) -> None:
        """Stop the task, and write what is queued and counted."""
        if self._task is not None:
            await self._task.stop()
            self._task = None
        try:
            await self._flush()
            self._queue_counts()
            await self._flush()
        except Exception as exc:  # A trail that was tampered with refuses rows.
            rows, counts = len(self._waiting), len(self._counts)
            _log.error("refused access not recorded", rows=rows, counts=counts, exc_info=not isinstance(exc, CCPError))

    def _roll_window(self) -> None:
        """Begin the next window when the current one has ended."""
        if time.monotonic() >= self._window.until:
            self._window = _Window(time.monotonic() + self._window_length)
            self._queue_counts()

    def _queue_counts(self) -> None:
        """Queue a row for each count, unless the queue is full: then counting continues."""
        if len(self._waiting) >= _MAX_QUEUED:
            return
        for (actor, operation, address, outcome), count in self._counts.items():
            subject: dict[str, Any] = {
                "count": count.number,
                "since": count.first.at.isoformat(),
                **({"operation": operation} if operation else {}),
                **({"address": address} if address else {}),
                **({"callers": "several"} if count.shared else {}),
            }
            self._waiting.append(
                Entry(count.last.at, actor, Action.ACCESS_REFUSED, subject, outcome, count.last.trace_id)
            )
        self._counts.clear()

    async def _write(self) -> None:
        if self._counts:
            self._roll_window()
        await self._flush()

    async def _flush(self) -> None:
        """Write the queued rows. Raises what a write raises; rows that were not written stay queued."""
        while self._waiting:
            batch = [self._waiting[place] for place in range(min(_BATCH, len(self._waiting)))]
            await self._store.write(queries.record(*batch))
            for _ in batch:
                self._waiting.popleft()
