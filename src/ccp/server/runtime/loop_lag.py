"""Lag of the event loop: how late it runs what is due.

    lag = LoopLag(metrics.loop_lagged)
    background.add(lag.probing())
    lag.current                     # seconds, now
    lag.recent_max                  # seconds, the worst of late; halves every second
    lag.lost                        # seconds, all lags so far: the difference of two readings is of the time between

A probe is due every 50 ms; its lag is the time from when it was due to when it ran. A probe that is overdue counts too:
`current` is right within the very turn that takes too long. Without a running probe every value is 0. All times are
seconds of the monotonic clock.
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
    """One for each event loop."""

    def __init__(
        self,
        observe: Callable[[float, float], None] = lambda lag, recent_max: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """observe: receives the lag of each probe and `recent_max` after it."""
        self._observe = observe
        self._clock = clock
        self._due = math.inf  # When the next probe is due.
        self._last = 0.0
        self._max = 0.0
        self._max_at = 0.0
        self._lost = 0.0

    @property
    def current(self) -> float:
        """The lag of the last probe, or by how much the next one is overdue if that is more."""
        return max(self._last, self._overdue())

    @property
    def recent_max(self) -> float:
        """The largest lag, weighed by its age: half of it counts after a second, a quarter after two."""
        faded: float = self._max * 0.5 ** ((self._clock() - self._max_at) / _HALF_LIFE)
        return max(faded, self._overdue())

    @property
    def lost(self) -> float:
        """The sum of all lags. It grows by a quarter of the time, say, where turns of the loop take 33 ms."""
        return self._lost + self._overdue()

    def expect(self, delay: float) -> None:
        """The next probe is due after this delay."""
        self._due = self._clock() + delay

    def record(self) -> None:
        """The probe that is due runs now."""
        now = self._clock()
        self._last = lag = max(0.0, now - self._due)
        self._due = math.inf
        if lag >= self.recent_max:
            self._max, self._max_at = lag, now
        self._lost += lag
        self._observe(lag, self.recent_max)

    def probing(self) -> PeriodicTask:
        """Measures the lag of the loop that it runs in, for as long as it runs."""

        async def probe() -> None:
            try:
                for _ in range(_PROBES_PER_ROUND):
                    self.expect(PROBE_INTERVAL)
                    await asyncio.sleep(PROBE_INTERVAL)
                    self.record()
            except BaseException:
                self._due, self._last = math.inf, 0.0  # Nothing measures until the next round.
                raise

        return PeriodicTask("loop_lag", probe, 0.0, first_delay=0.0)

    def _overdue(self) -> float:
        return max(0.0, self._clock() - self._due)
