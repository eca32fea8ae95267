"""Lag of the event loop: by how much it runs scheduled callbacks late.

    lag = LoopLag(metrics.loop_probed)
    background.add(lag.probe_task())
    lag.current                     # seconds, now
    lag.recent_max                  # seconds, the recent maximum; halves every second
    lag.total                       # seconds, the sum of all lags; subtract two readings for a period

A probe is due every 50 ms; its lag is the time from when it was due to when it ran. An overdue probe counts too, so
`current` is correct even within the iteration that takes too long. Without a running probe every value is 0. All times
are seconds of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

from ccp.server.runtime.background import PeriodicTask

PROBE_INTERVAL: Final = 0.05
_HALF_LIFE: Final = 1.0
_PROBES_PER_ROUND: Final = 100  # The supervision of a round costs as much as a probe.


class LoopLag:
    """The lag of one event loop."""

    def __init__(
        self,
        observe: Callable[[float, float], None] = lambda lag, recent_max: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """observe: called with the lag of each probe and `recent_max` after it."""
        self._observe = observe
        self._clock = clock
        self._due = math.inf  # When the next probe is due.
        self._last = 0.0
        self._max = 0.0
        self._max_at = 0.0
        self._total = 0.0

    @property
    def current(self) -> float:
        """The lag of the last probe, or by how much the next one is overdue if that is more."""
        return max(self._last, self._overdue())

    @property
    def recent_max(self) -> float:
        """The largest lag, weighted by age: half of it counts after a second, a quarter after two."""
        faded: float = self._max * 0.5 ** ((self._clock() - self._max_at) / _HALF_LIFE)
        return max(faded, self._overdue())

    @property
    def total(self) -> float:
        """The sum of all lags. With iterations of 33 ms, for example, it grows by a quarter of the elapsed time."""
        return self._total + self._overdue()

    def expect(self, delay: float) -> None:
        """Schedule the next probe after this delay."""
        self._due = self._clock() + delay

    def record(self) -> None:
        """Record that the scheduled probe runs now."""
        now = self._clock()
        self._last = lag = max(0.0, now - self._due)
        self._due = math.inf
        if lag >= self.recent_max:
            self._max, self._max_at = lag, now
        self._total += lag
        self._observe(lag, self.recent_max)

    def probe_task(self) -> PeriodicTask:
        """The background task that measures the lag of the event loop that it runs in."""

        async def probe() -> None:
            try:
                for _ in range(_PROBES_PER_ROUND):
                    self.expect(PROBE_INTERVAL)
                    await asyncio.sleep(PROBE_INTERVAL)
                    self.record()
            except BaseException:
                self._due, self._last = math.inf, 0.0  # Nothing is measured until the next round.
                raise

        return PeriodicTask("loop_lag", probe, 0.0, first_delay=0.0)

    def _overdue(self) -> float:
        return max(0.0, self._clock() - self._due)
