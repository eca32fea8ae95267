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
"""Vehicles of one peer in a row; if it announces more at a time, all that it answered is forgotten."""
_WRITE_DELAY: Final = 0.2  # Seconds from an announcement to the write, in which others are gathered.


class SharedNegatives:
    """The negative cache of this worker, and its share in the invalidation of the others'."""

    def __init__(self, store: Store, cache: NegativeCache) -> None:
        self._store = store
        self._cache = cache
        self._waiting: dict[str, frozenset[PCID] | None] = {}
        """The vehicles to announce, by peer; None for all vehicles."""
        self._wake = asyncio.Event()
        self._feed = ChangeFeed(store, (ChangeCounter.NEGATIVES,), self)

    def forget(self, peer: str, pcid: PCID) -> None:
        """Remove what a peer answered for a vehicle, here now and in the other workers soon."""
        self._cache.forget(pcid, peer)
        self._gather(peer, frozenset((pcid,)))
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
            for peer, vehicles in json.loads(key).items():
                if vehicles is None:
                    self._cache.forget_peer(peer)
                for pcid in vehicles or ():
                    self._cache.forget(PCID(pcid), peer)

    def _gather(self, peer: str, vehicles: frozenset[PCID] | None) -> None:
        waiting = self._waiting.get(peer, frozenset())
        union = None if waiting is None or vehicles is None else waiting | vehicles
        self._waiting[peer] = union if union is not None and len(union) <= MAX_VEHICLES else None

    async def _write(self) -> None:
        if not self._waiting:
            return
        writing, self._waiting = self._waiting, {}
        try:
            key = json.dumps({peer: None if vehicles is None else list(vehicles) for peer, vehicles in writing.items()})
            await self._store.write(bump_and_log(ChangeCounter.NEGATIVES, key))
        except BaseException:
            for peer, vehicles in writing.items():
                self._gather(peer, vehicles)
            raise
