"""Limits on broadcasts, so that one party's vehicles that no pool knows do not slow down other parties.

A broadcast is one request of a vehicle that may be sent to every other pool. Each worker limits two things for each
party: broadcasts in flight, and the rate of requests to other pools that they cause. A broadcast beyond a limit is
answered from this pool alone. While the event loop is late the rate is lower, because broadcasts are optional work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from ccp.server.pool.peer_limits import Shares

IN_FLIGHT: Final = 32, 16
"""Broadcasts in flight in one worker: total, and of one party. The last quarter is for parties with none in flight."""
_BURST: Final = 1.0  # Requests that may come at once, in seconds of the rate.
_RESERVED_BURST: Final = 0.25  # The part of it that a party may use regardless of the others.
_MAX_PARTIES: Final = 4_096
# A request counts twice while the event loop is late by so many seconds, three times at double the lag, and so on.
_LAG_UNIT: Final = 0.05


class BroadcastLimits:
    """Limits on broadcasts of one worker.

    Rates are stored as theoretical arrival times (GCRA), as in `ccp.server.access.token_bucket`: the time at which the
    next request would be due if requests came exactly at their rate. A broadcast is debited as it sends requests;
    further broadcasts of a party beyond its rate are refused until that time has come.
    """

    def __init__(
        self,
        rate: float,
        lag: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """rate: requests per second to other pools that the broadcasts of one party may cause; 0 for no limit.

        All parties together may cause twice as many. Beyond that only parties with hardly any recent requests may start
        a broadcast. lag: recent lag of the event loop, seconds. clock: monotonic seconds.
        """
        self._lag = lag
        self.set_rate(rate)
        self._clock = clock
        self._in_flight = Shares(*IN_FLIGHT)
        self._due: dict[str, float] = {}
        self._all_due = 0.0

    def set_rate(self, rate: float) -> None:
        """Use another rate from now on, see `__init__`."""
        self._interval = 1 / rate if rate else 0.0

    def admits(self, party: str) -> bool:
        """Whether the party may start a broadcast now."""
        if not self._in_flight.has_room(party):
            return False
        now = self._clock()
        ahead = self._due.get(party, 0.0) - now
        return ahead < _BURST and (self._all_due - now < _BURST or ahead < _RESERVED_BURST)

    def taken(self, party: str) -> AbstractContextManager[None]:
        """Count one more broadcast of the party during the context. Call `admits` first."""
        return self._in_flight.taken(party)

    def debit(self, party: str) -> None:
        """Count one request to another pool that a broadcast of the party causes."""
        now = self._clock()
        if party not in self._due and len(self._due) >= _MAX_PARTIES:
            self._make_room(now)
        interval = self._interval * (1 + self._lag() / _LAG_UNIT)
        self._due[party] = max(self._due.get(party, 0.0), now) + interval
        self._all_due = max(self._all_due, now) + interval / 2

    def _make_room(self, now: float) -> None:
        """Remove parties that are within their rate; if there are none, the one that is least beyond it."""
        self._due = {party: due for party, due in self._due.items() if due > now}
        if len(self._due) >= _MAX_PARTIES:
            del self._due[min(self._due, key=self._due.__getitem__)]
