"""First-come, first-served queue of webhooks, for a worker that has little time for deliveries.

A webhook that always has deliveries waits behind all others that asked before it, so it cannot starve them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

_POLL_INTERVAL: Final = 0.05  # Seconds between two checks for capacity.


class FairQueue:
    """Admits webhooks in the order in which they asked. One per dispatcher."""

    def __init__(self, has_capacity: Callable[[], bool]) -> None:
        """has_capacity: whether deliveries may start now; each True permits one start."""
        self._has_capacity = has_capacity
        self._waiting: dict[str, asyncio.Event] = {}
        self._admitted: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    def try_enter(self, webhook_id: str, wake: asyncio.Event) -> bool:
        """Whether deliveries to a webhook may start now. If not, `wake` is set once they may; then call it again."""
        if webhook_id in self._admitted:
            self._admitted.discard(webhook_id)
            return True
        if not self._waiting and self._has_capacity():
            return True
        self._waiting.setdefault(webhook_id, wake)
        self._schedule()
        return False

    @property
    def queued(self) -> int:
        """The number of webhooks that wait."""
        return len(self._waiting)

    def remove(self, webhook_id: str) -> None:
        """Remove a webhook that has no deliveries any more."""
        self._waiting.pop(webhook_id, None)
        self._admitted.discard(webhook_id)

    def close(self) -> None:
        """Stop checking for capacity."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self) -> None:
        if self._timer is None and self._waiting:
            self._timer = asyncio.get_running_loop().call_later(_POLL_INTERVAL, self._admit)

    def _admit(self) -> None:
        self._timer = None
        while self._waiting and self._has_capacity():
            webhook_id, wake = next(iter(self._waiting.items()))
            del self._waiting[webhook_id]
            self._admitted.add(webhook_id)
            wake.set()
        self._schedule()
