"""Limits on broadcasts, so that one party's vehicles that no pool knows do not slow down everyone's.

A broadcast is one request of a vehicle that may be asked of every other pool. Two things are limited, in each worker
and for each party: broadcasts in flight, and requests to other pools per second that they cause. A broadcast beyond a
limit is answered from this pool alone. While the event loop is late the rate is lower, since this work can be left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from ccp.server.pool.peer_limits import Shares

IN_FLIGHT: Final = 32, 16
"""Broadcasts in flight in one worker: in all, and of one party. The last quarter is for parties with none in flight."""
_BURST: Final = 1.0  # Seconds' worth of requests that may come at once.
_SMALL: Final = 0.25  # Seconds' worth that a party may use whatever the others do.
_MAX_PARTIES: Final = 4_096
_LAG: Final = (
    0.05  # Seconds by which the event loop has to be late for a request to count twice; by twice as much: three times.
)


class BroadcastLimits:
    """Rates are kept as theoretical arrival times, as in `ccp.server.access.token_bucket`: when the next request would
    be due if requests came exactly at their rate. What a broadcast causes is counted as it happens; further broadcasts
    of a party that is beyond its rate are refused until the time has caught up.
    """

    def __init__(
        self,
        rate: float,
        lag: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """rate: requests to other pools a second that the broadcasts of one party may cause; 0 for no limit.

        All parties together may cause twice as many; beyond that only parties with hardly any of late. lag: seconds by
        which the event loop was late lately.
        """
        self._lag = lag
        self._interval = 1 / rate if rate else 0.0
        self._clock = clock
        self._in_flight = Shares(*IN_FLIGHT)
        self._due: dict[str, float] = {}
        self._all_due = 0.0

    def admits(self, party: str) -> bool:
        """Whether the party may start a broadcast now."""
        if not self._in_flight.has_room(party):
            return False
        now = self._clock()
        ahead = self._due.get(party, 0.0) - now
        return ahead < _BURST and (self._all_due - now < _BURST or ahead < _SMALL)

    def taken(self, party: str) -> AbstractContextManager[None]:
        """While it lasts, one more broadcast of the party is in flight. Ask `admits` first."""
        return self._in_flight.taken(party)

    def count(self, party: str) -> None:
        """A broadcast of the party causes one request to another pool."""
        now = self._clock()
        if party not in self._due and len(self._due) >= _MAX_PARTIES:
            self._forget(now)
        interval = self._interval * (1 + self._lag() / _LAG)
        self._due[party] = max(self._due.get(party, 0.0), now) + interval
        self._all_due = max(self._all_due, now) + interval / 2

    def _forget(self, now: float) -> None:
        """Forget parties that are within their rate; where there are none, the one that is least beyond it."""
        self._due = {party: due for party, due in self._due.items() if due > now}
        if len(self._due) >= _MAX_PARTIES:
            del self._due[min(self._due, key=self._due.__getitem__)]
