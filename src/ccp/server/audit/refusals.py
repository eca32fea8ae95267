"""Audit of refused access: rows are written after the answer and in batches, and a flood is counted."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from ccp.server.audit.buffered_writer import BufferedWriter
from ccp.server.runtime.background import BackgroundTasks
from ccp.server.storage import Store
from ccp.server.storage.queries import audit as queries
from ccp.server.storage.queries.audit import UNKNOWN, Action, Entry

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
        self._window_length = window
        self._counts: dict[_Kind, _Count] = {}
        self._window = _Window(0.0)
        self._closing = False
        self._writer = BufferedWriter[Entry](
            "audit",
            lambda rows: store.write(queries.record(*rows)),
            task="refused_access",
            interval=_WRITE_INTERVAL,
            max_rows=_MAX_QUEUED,
            batch=_BATCH,
            collect=self._collect,
        )

    @property
    def queued(self) -> int:
        """The number of entries that are not written yet."""
        return self._writer.queued

    def record(self, entry: Entry) -> None:
        """Queue an entry without waiting. Its subject may have the members operation and address."""
        self._roll_window()
        window = self._window
        kind: _Kind = (entry.actor, entry.subject.get("operation"), entry.subject.get("address"), entry.outcome)
        seen = window.seen.get(kind, 0)
        if window.left and seen < _MAX_ROWS_PER_KIND and self._writer.add(entry):
            window.left -= 1
            window.seen[kind] = seen + 1
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
        self._writer.open(background or BackgroundTasks())

    async def close(self) -> None:
        """Stop the task, and write what is queued and counted."""
        self._closing = True
        await self._writer.close()

    def _collect(self) -> None:
        """Queue the counts of a window that has ended, and at the end all counts."""
        if self._closing:
            self._queue_counts()
        elif self._counts:
            self._roll_window()

    def _roll_window(self) -> None:
        """Begin the next window when the current one has ended."""
        if time.monotonic() >= self._window.until:
            self._window = _Window(time.monotonic() + self._window_length)
            self._queue_counts()

    def _queue_counts(self) -> None:
        """Queue a row for each count. Counts that the queue has no room for go on."""
        for kind, count in list(self._counts.items()):
            actor, operation, address, outcome = kind
            subject: dict[str, Any] = {
                "count": count.number,
                "since": count.first.at.isoformat(),
                **({"operation": operation} if operation else {}),
                **({"address": address} if address else {}),
                **({"callers": "several"} if count.shared else {}),
            }
            row = Entry(count.last.at, actor, Action.ACCESS_REFUSED, subject, outcome, count.last.trace_id)
            if not self._writer.add(row):
                return
            del self._counts[kind]
