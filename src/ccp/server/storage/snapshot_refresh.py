"""Keeps in-memory snapshots of database tables up to date.

Other processes change parties, trust anchors, peers and keys. Each worker polls the change counters once a second and
reloads the snapshots whose counters have changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from ccp.server.runtime.background import BackgroundTasks, PeriodicTask
from ccp.server.storage import Store
from ccp.server.storage.queries import change_counters
from ccp.server.storage.queries.change_counters import ChangeCounter

REFRESH_INTERVAL: Final = 1.0
"""Seconds between two polls of the change counters."""
_TIMEOUT: Final = 10.0  # A small table is read in milliseconds; a refresh that hangs must fail to be noticed.


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An in-memory copy of tables that other processes change.

    counters: the change counters whose tables `refresh` loads. critical: whether access or trust depends on it.
    timeout: of one refresh, in seconds.
    """

    name: str
    counters: tuple[ChangeCounter, ...]
    refresh: Callable[[], Awaitable[None]]
    critical: bool = True
    timeout: float = _TIMEOUT


class SnapshotRefresher:
    """Refreshes snapshots when their change counters move.

    Each snapshot has its own background task, so one that fails does not delay the others. interval: seconds between
    two polls of the counters.
    """

    def __init__(self, store: Store, *snapshots: Snapshot, interval: float = REFRESH_INTERVAL) -> None:
        self._store = store
        self._interval = interval
        self._snapshots = snapshots
        self._counters: dict[str, int] = {}
        self._seen: dict[str, list[int]] = {}
        self._changed = {snapshot.name: asyncio.Event() for snapshot in snapshots}

    async def refresh_all(self) -> None:
        """Refresh every snapshot once. Raises the first error."""
        await self._poll()
        for snapshot in self._snapshots:
            await self._refresh(snapshot)

    def supervise(self, background: BackgroundTasks) -> None:
        """Start the background tasks that poll the change counters and refresh the snapshots."""

        def add(name: str, run: Callable[[], Awaitable[None]], timeout: float = _TIMEOUT, **more: Any) -> None:
            retry = {"retry_delay": self._interval, "max_retry_delay": self._interval}
            background.add(
                PeriodicTask(name, run, self._interval, timeout=timeout, **retry, **more)  # type: ignore[arg-type]
            )

        add("poll_changes", self._poll, critical=any(snapshot.critical for snapshot in self._snapshots))
        for snapshot in self._snapshots:
            add(
                f"refresh_{snapshot.name}",
                partial(self._refresh, snapshot),
                timeout=snapshot.timeout,
                critical=snapshot.critical,
                wake=self._changed[snapshot.name],
            )

    async def _poll(self) -> None:
        self._counters = await self._store.read(change_counters.read_all())
        for snapshot in self._snapshots:
            if self._counters_of(snapshot) != self._seen.get(snapshot.name):
                self._changed[snapshot.name].set()

    async def _refresh(self, snapshot: Snapshot) -> None:
        counters = self._counters_of(snapshot)
        if counters != self._seen.get(snapshot.name):
            await snapshot.refresh()
            self._seen[snapshot.name] = counters

    def _counters_of(self, snapshot: Snapshot) -> list[int]:
        return [self._counters.get(counter, 0) for counter in snapshot.counters]
