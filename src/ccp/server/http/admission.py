"""Admission control: which requests a worker starts, which wait, and which get 503 before any work is done for them.

A worker computes for some 0.6 ms for each vehicle request, in one thread, and each request that it starts delays all
others. So it starts at most `MAX_STARTS` requests in one iteration of the event loop. The others wait, in one queue for
each class:

- *vehicle*: requests of charging stations, from a caller that this worker has authenticated before;
- *unverified*: the same, and token requests, from callers whose token this worker has not verified yet;
- *bulk*: everything else;
- *probe*: `/health…` and `/metrics`. A few start at once in each iteration; only those beyond wait.

The vehicle class goes first. A lower class is next when `yields` requests of other classes were started while it
waited, so that none starves. A request in progress for more than a quarter of a second waits for a database, another
pool or a service, and does not keep others of its class from being started.

Within a class, callers have equal shares (`ccp.server.http.fair_queue`). A caller is a party; an unverified caller is
its address. A request that does not fit displaces one of the caller with the most requests.

Time in which the event loop itself was blocked does not count as overload.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final

from ccp.server.http.fair_queue import MAX_STARTS, Lane, QueuedRequest, Reason

MIN_STARTS: Final = 4
"""The minimum under overload. A connection sends its next request only after it has a response, so the more requests
each connection sends, the shorter iterations have to be. Otherwise, long iterations serve better."""
_MAX_STARTS_OVERLOADED: Final = 32
_STARTS_TIMES_REQUESTS: Final = 150
"""Starts in an iteration, times requests of a connection in an epoch. An iteration then takes a third of the time
between two requests of a connection."""
_MIN_IN_PROGRESS: Final = 16
_SHARE_IN_PROGRESS: Final = 0.4
_SHARE_QUEUED: Final = 0.2
"""Shares of the connections whose requests may be in progress and in a standing queue. The other connections are free
for requests that are refused, so no request waits at its client for a connection."""

MAX_PROBES: Final = 2
"""Probes that start at once in one iteration. Load balancers and supervisors send a few a second; more is a flood."""

_MAX_ITERATION: Final = 0.02  # Seconds that one iteration adds, at most, to the age of a queue.
_BLOCKED_DELAY: Final = 0.001  # Between two checks of queues from which no request can be started.
_IDLE_ITERATION: Final = 0.0005
_BACKGROUND_INTERVAL: Final = 0.1
_EPOCH: Final = 0.25  # Seconds in which the connections that send requests are counted.
_SHORT_QUEUE: Final = 16
_MAX_TOKENS: Final = 16_384
_MAX_TOKEN: Final = 4096  # Bytes of an Authorization header that is remembered.

IDENTIFIED: Final = "ccp.identified"
"""Scope key: `Admission.identified`."""
UNVERIFIED: Final = "ccp.unverified"
"""Scope key: set if the request waited as one of an unverified caller."""
WAITED: Final = "ccp.waited"
"""Scope key: the seconds that the request waited for admission, if it did."""

_VEHICLE_PATHS: Final = frozenset(
    {"/opnc/v1/ccp/signedcontractdata", "/v1/ccp/signedcontractdata", "/ocpp/v1/get15118evcertificate"}
)
_PROBES: Final = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
_TOKEN_PATH: Final = "/oauth/token"  # noqa: S105


def _enough(starts: int) -> int:
    """Return the number of recent requests in progress that keep the event loop busy.

    A request takes some iterations. Requests that wait for a database or another pool do not keep the loop busy: when
    it is idle, more are started, up to `max_in_flight`. Requests in progress for long do not count.
    """
    return 16 + 4 * starts


class Admission:
    """The admission control of one worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds, monotonic."""
        self._clock = clock
        # A vehicle expects its response within half a second. 512 requests are a third of a second of work.
        self.vehicles = Lane(
            "vehicle",
            max_waiting=512,
            short_queue=_SHORT_QUEUE,
            standing_after=0.2,
            max_age=1.0,
            max_in_flight=512,
            yields=0,
        )
        self.unverified = Lane(
            "unverified",
            max_waiting=256,
            short_queue=_SHORT_QUEUE,
            standing_after=0.2,
            max_age=1.0,
            max_in_flight=128,
            yields=4,
        )
        # Callers are servers, which wait longer and send the next request when they have the response.
        self.bulk = Lane(
            "bulk",
            max_waiting=512,
            short_queue=128,
            standing_after=0.5,
            max_age=2.0,
            max_in_flight=512,
            yields=20,
        )
        self.probes = Lane(
            "probe",
            max_waiting=512,
            short_queue=512,
            standing_after=2.0,
            max_age=2.0,
            max_in_flight=512,
            yields=4,
        )
        self.lanes: Final = (self.vehicles, self.unverified, self.bulk, self.probes)
        self.shed: Counter[tuple[str, str]] = Counter()
        """Refused requests by class and reason."""
        self._parties: dict[int, str] = {}
        """Client ids by the interpreter's keyed hash (SipHash) of the Authorization header, which may be long. Only the
        party's share depends on it, no access right."""
        self._waiting = 0
        self._left = MAX_STARTS
        self._probes_left = MAX_PROBES
        self._armed = False
        self._contended = False
        self._starts = MIN_STARTS
        self._enough = _enough(MAX_STARTS)
        self._enough_overloaded = _MIN_IN_PROGRESS
        self._idle = False
        self.epoch = 0
        """Changes every quarter of a second under overload."""
        self.asking = 0
        """Connections that have sent a request in this epoch."""
        self.arrived = 0
        """Requests that have arrived in this epoch."""
        self._epoch_began = 0.0
        self._background_at = 0.0
        self._number = 0
        self._pumped = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.overloaded = False
        """Whether a queue of vehicle requests is standing."""

    @property
    def waiting(self) -> int:
        """The number of waiting requests."""
        return self._waiting

    # Requests.

    def offer(self, request: QueuedRequest, method: str, path: str) -> None:
        """Start a request now, queue it, or refuse it."""
        lane = self._lane(method, path)
        if lane is self.probes:
            if self._probes_left > 0 and not lane.queue and lane.may_start(lane.max_in_flight):
                self._probes_left -= 1
                if not self._armed:
                    self._arm()
                self._start(request, lane)
                return
        elif not self._waiting and self._left > 0 and lane.may_start(self._enough):
            self._left -= lane.cost
            if not self._armed:
                self._arm()
            self._start(request, lane)
            return
        party = self._parties.get(hash(request.authorization()))
        caller: Hashable = party
        if party is None:
            caller = request.address()
            if lane is self.vehicles:
                lane = self.unverified
        request.lane, request.arrived = lane, self._clock()
        if len(lane.queue) >= lane.limit:
            if lane.is_full_for(caller):
                self._refuse(request, lane, Reason.QUEUE_FULL)
                return
            self._waiting -= 1
            self._refuse(lane.evict(), lane, Reason.QUEUE_FULL)
        self._number += 1
        lane.add(request, caller, self._number)
        self._waiting += 1
        self._contended = True
        if not self._armed:
            self._arm()

    def try_shed(self, authorization: bytes, address: Hashable) -> bool:
        """Refuse and count a vehicle request that arrives now if there is no room for it. Returns whether it was.

        address: what an unverified caller counts as; None if the request has to be parsed for that.
        """
        party = self._parties.get(hash(authorization))
        if party is None and address is None:
            return False
        lane, caller = (self.unverified, address) if party is None else (self.vehicles, party)
        if lane.standing and lane.is_full_for(caller):
            lane.refused = True
            self.shed[lane.name, Reason.QUEUE_FULL] += 1
            return True
        return False

    def ended(self, request: QueuedRequest) -> None:
        """Stop counting a started request as in progress."""
        lane = request.lane
        if lane is not None:
            lane.ended(request)
            if self._waiting and not self._armed:
                self._arm()

    def disconnected(self, request: QueuedRequest) -> None:
        """Drop a waiting request whose client has disconnected."""
        lane = request.lane
        if lane is not None and lane.remove(request):
            self._waiting -= 1
            self.shed[lane.name, Reason.CLIENT_GONE] += 1
            request.lane = None
            request.drop()

    def has_time(self) -> bool:
        """Return whether background work may start: always without overload, ten times a second under overload."""
        if not self.overloaded:
            return True
        now = self._clock()
        if now - self._background_at < _BACKGROUND_INTERVAL:
            return False
        self._background_at = now
        return True

    def identified(self, authorization: bytes, party: str | None) -> None:
        """Remember the party of an Authorization header. party: None for an invalid header, which is forgotten."""
        if party is None:
            self._parties.pop(hash(authorization), None)
            return
        # One token can be written with any number of spaces, and would fill the table; clients write one.
        if len(authorization) > _MAX_TOKEN or authorization.count(b" ") > 1 or b"\t" in authorization:
            return
        if len(self._parties) >= _MAX_TOKENS:
            del self._parties[next(iter(self._parties))]
        self._parties[hash(authorization)] = party

    def _lane(self, method: str, path: str) -> Lane:
        if path in _PROBES:
            return self.probes
        if method == "POST":
            if path in _VEHICLE_PATHS or path.lower() in _VEHICLE_PATHS:
                return self.vehicles
            if path == _TOKEN_PATH:
                return self.unverified
        return self.bulk

    def _start(self, request: QueuedRequest, lane: Lane) -> None:
        lane.started(request)
        request.begin()

    def _refuse(self, request: QueuedRequest, lane: Lane, reason: Reason) -> None:
        lane.refused = True
        self.shed[lane.name, reason] += 1
        request.lane = None
        request.refuse()

    # Iterations of the event loop.

    def _arm(self) -> None:
        self._armed = True
        asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Start waiting requests. Called once in each iteration while there are any."""
        self._armed = False
        self._left = MAX_STARTS
        self._probes_left = MAX_PROBES
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiting:
            self._idle = False
            if self._contended or self.overloaded:
                self.settle()
            return
        now = self._clock()
        elapsed, self._pumped = min(_MAX_ITERATION, now - self._pumped), now
        for lane in self.lanes:
            lane.roll_period(now)
            if lane.queue:
                for request in lane.elapse(elapsed):
                    self._waiting -= 1
                    self._refuse(request, lane, Reason.QUEUE_AGE)
        if self.vehicles.standing or self.unverified.standing:
            self.overloaded = True
            self._left = self._starts_for(now)
            self._enough = self._enough_overloaded
        while self._left > 0 and (chosen := self._choose()) is not None:
            request = chosen.pop()
            self._waiting -= 1
            waited = now - request.arrived
            chosen.delay = max(chosen.delay, waited)
            if waited > chosen.max_age:
                self._refuse(request, chosen, Reason.QUEUE_AGE)
                continue
            self._left -= chosen.cost
            self._start(request, chosen)
        self.settle()
        self._idle = False
        if not self._waiting:
            return
        if self._left > 0:  # Too many are in progress.
            self._blocked(now)
        else:
            self._arm()

    def _starts_for(self, now: float) -> int:
        """Return how many requests to start in an iteration under overload."""
        elapsed = now - self._epoch_began
        if elapsed >= _EPOCH:
            if elapsed < 2 * _EPOCH:
                starts = _STARTS_TIMES_REQUESTS * self.asking // max(1, self.arrived)
                self._starts = starts = min(_MAX_STARTS_OVERLOADED, max(MIN_STARTS, starts))
                self._enough_overloaded = max(_MIN_IN_PROGRESS, min(4 * starts, int(_SHARE_IN_PROGRESS * self.asking)))
                short_queue = max(_SHORT_QUEUE, min(starts, int(_SHARE_QUEUED * self.asking)))
                self.vehicles.short_queue = self.unverified.short_queue = short_queue
            self.epoch, self.asking, self.arrived, self._epoch_began = self.epoch + 1, 0, 0, now
        return self._starts

    def settle(self) -> None:
        """Decide whether the overload continues. Also called every half second, because requests may have stopped."""
        now = self._clock()
        for lane in self.lanes:
            if not lane.queue:
                lane.emptied(now)
        self._contended = self._waiting > 0
        self.overloaded = self.vehicles.standing or self.unverified.standing
        if not self.overloaded:
            self._enough = _enough(MAX_STARTS)

    def _choose(self) -> Lane | None:
        found = None
        for lane in self.lanes:
            if (
                lane.queue
                and lane.may_start(lane.max_in_flight if self._idle else self._enough)
                and (found is None or lane.passed_over >= lane.yields)
            ):
                found = lane
        for lane in self.lanes:
            if lane is found:
                lane.passed_over = 0
            elif lane.queue:
                lane.passed_over += 1
        return found

    def _blocked(self, now: float) -> None:
        for lane in self.lanes:
            for request in lane.pop_older_than(now - lane.max_age):
                self._waiting -= 1
                self._refuse(request, lane, Reason.QUEUE_AGE)
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(_BLOCKED_DELAY, self._check_idle)

    def _check_idle(self) -> None:
        """Find out whether the event loop is idle: then the next iteration follows at once."""
        self._timer = None
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_soon(self._pump_if_idle, self._clock())

    def _pump_if_idle(self, scheduled_at: float) -> None:
        self._idle = self._clock() - scheduled_at < _IDLE_ITERATION
        self._pump()
