"""Budget for parsing responses of remote servers in one iteration of the event loop.

Parsers are fed in small chunks, and each chunk is debited first. All connections share the budget of an iteration: the
rest waits for the next iteration, in order of arrival, and other requests are served in between.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final

MAX_COST_PER_ITERATION: Final = 1500
"""Estimated microseconds. A slow machine takes two or three times as long, which is still under 5 ms."""


class LoopBudget:
    """The budget of all outbound connections of an event loop."""

    def __init__(self, max_cost_per_iteration: int = MAX_COST_PER_ITERATION) -> None:
        self._max = max_cost_per_iteration
        self._left = max_cost_per_iteration
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._renewal_due = False

    async def spend(self, cost: int) -> float:
        """Wait for permission to do work of this cost (estimated microseconds). Returns the seconds that it took."""
        if self._left > 0 and not self._waiting:
            self._left -= cost
            self._renew_next_iteration()
            return 0.0
        allowed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((allowed, cost))
        self._renew_next_iteration()
        began = time.monotonic()
        await allowed
        return time.monotonic() - began

    def _renew_next_iteration(self) -> None:
        if not self._renewal_due:
            self._renewal_due = True
            asyncio.get_running_loop().call_soon(self._renew)

    def _renew(self) -> None:
        self._renewal_due = False
        self._left = min(self._left + self._max, self._max)
        while self._waiting and self._left > 0:
            allowed, cost = self._waiting.popleft()
            if not allowed.done():  # Cancelled while it waited.
                self._left -= cost
                allowed.set_result(None)
        if self._waiting or self._left < self._max:
            self._renew_next_iteration()
