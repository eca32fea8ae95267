"""Invalidation of the negative caches of all workers, when a peer announces that its contracts have changed.

    negatives = SharedNegatives(store, cache)
    negatives.forget("pool-b", pcid)        # this worker at once, the others within about a second

Announcements are gathered and written to the change log as one row, whatever their number; workers follow the log
(`ccp.server.storage.change_feed`). One that is lost with a worker costs little: entries expire anyway.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Collection
from typing import Final

from ccp.ids import PCID
from ccp.server.pool.negative_cache import NegativeCache
from ccp.server.runtime.background import PeriodicTask
from ccp.server.storage import Store
from ccp.server.storage.change_feed import ChangeFeed
from ccp.server.storage.queries.change_counters import ChangeCounter, bump_and_log

MAX_VEHICLES: Final = 500
"""Vehicles of one row; if more are announced at a time, all caches are cleared."""
_WRITE_DELAY: Final = 0.2  # Seconds from an announcement to the write, in which others are gathered.


class SharedNegatives:
    """The negative cache of this worker, and its share in the invalidation of the others'."""

    def __init__(self, store: Store, cache: NegativeCache) -> None:
        self._store = store
        self._cache = cache
        self._waiting: dict[tuple[str, PCID], None] = {}
        self._overflow = False
        self._wake = asyncio.Event()
        self._feed = ChangeFeed(store, (ChangeCounter.NEGATIVES,), self)

    def forget(self, peer: str, pcid: PCID) -> None:
        """Remove what a peer answered for a vehicle, here now and in the other workers soon."""
        self._cache.forget(pcid, peer)
        if len(self._waiting) < MAX_VEHICLES:
            self._waiting[peer, pcid] = None
        else:
            self._overflow = True
        self._wake.set()

    def write_task(self) -> PeriodicTask:
        """The background task that announces to the other workers."""
        return PeriodicTask(
            "negative_answers", self._write, math.inf, wake=self._wake, wake_delay=_WRITE_DELAY, max_retry_delay=5.0
        )

    async def refresh(self) -> None:
        """Apply what other workers have announced. Raises Unavailable."""
        await self._feed.refresh()

    async def reload(self) -> None:
        """Clear the cache: the change log does not reach back far enough."""
        self._cache.clear()

    async def apply(self, counter: ChangeCounter, after: int, last: int, keys: Collection[str]) -> None:
        """Apply announcements; see `ccp.server.storage.change_feed.TableCopy`."""
        for key in keys:
            vehicles = json.loads(key)
            if not vehicles:
                self._cache.clear()
            for peer, pcid in vehicles:
                self._cache.forget(PCID(pcid), peer)

    async def _write(self) -> None:
        if not self._waiting:
            return
        waiting, overflow = self._waiting, self._overflow
        self._waiting, self._overflow = {}, False
        try:
            key = json.dumps([] if overflow else list(waiting))
            await self._store.write(bump_and_log(ChangeCounter.NEGATIVES, key))
        except BaseException:
            self._overflow |= overflow
            for each in waiting:
                self._waiting.setdefault(each)
            raise
