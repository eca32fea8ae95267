"""Admission of requests: which of them a worker starts, which wait, and which get 503 before any work is done for them.

A worker computes for some 0.6 ms for each vehicle, in one thread. Whatever it starts delays everything else, so it
starts no more than `MAX_STARTS` requests in one turn of the event loop. The others wait here, in one queue for each
class:

- *vehicle*: what a charging station asks for, by a caller that this worker has authenticated before;
- *unverified*: the same, and requests for tokens, by callers whose token this worker has not verified yet;
- *bulk*: everything else;
- *probe*: `/health…` and `/metrics`. A few start in each turn at once, and only those beyond wait.

Vehicles go first. A lower class that has waited while others were started `yields` times is next, so none starves.
A request that takes longer than a quarter of a second waits for a database, another pool or a service, and does not
keep others of its class from being started.
Within a class callers have equal shares: requests are ordered by start-time fair queueing, and what does not fit is
taken from the caller with most. A caller is a party here; an unverified one is its address.

A short queue absorbs bursts, a long-lasting one only adds delay (Nichols and Jacobson, Controlling Queue Delay, ACM
Queue 2012). So a queue may be long at first; when it has been longer than `short_queue` for `standing_after` seconds it
is cut down to its newest `short_queue` requests, and kept at that length until it is empty and nothing was refused for
a second. Time in which the loop itself stood still does not count: a pause is no overload.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Hashable
from enum import StrEnum
from typing import Final, Protocol

MAX_STARTS: Final = 8
"""Requests started in one turn of the event loop: some 5 ms of work, so that what comes in is seen soon."""
MIN_STARTS: Final = 4
"""The least under overload. A client with few connections holds its next request back until it has an answer, so the
fewer connections ask, the shorter a turn has to be; many are served better in long turns."""
_CONNECTIONS_PER_START: Final = 25
_MAX_STARTS_OVERLOADED: Final = 16

MAX_PROBES: Final = 2
"""Probes that start at once in one turn. Load balancers and supervisors send a few a second; more is a flood."""

_TURN: Final = 0.02  # What one turn counts for at most when it is judged how long a queue has lasted.
_LEAST_TURN: Final = 1e-6
_BLOCKED_DELAY: Final = 0.001  # Between two looks at queues of which nothing can be started.
_IDLE_TURN: Final = 0.0005
_SPARE_INTERVAL: Final = 0.1
_CALM: Final = 1.0
"""Seconds without a refusal after which an overload is over. The requests of many connections come in waves: a queue
that is empty between two of them must not take in the next wave whole."""
_EPOCH: Final = 0.25  # For which it is counted how many connections ask, seconds.
_SHORT_QUEUE: Final = 16
_MAX_TAGS: Final = 4096
_MAX_TOKENS: Final = 16_384
_MAX_TOKEN: Final = 4096  # Bytes of an Authorization header that is remembered.
_PERIOD: Final = 0.25  # A request that was started in this period or the one before may keep the loop busy, seconds.
_COST: Final = {"vehicle": 1, "unverified": 1, "bulk": 2, "probe": 1}

IDENTIFIED: Final = "ccp.identified"
"""Where the scope of a request has `Admission.identified`."""
UNVERIFIED: Final = "ccp.unverified"
"""Where the scope of a request says that it waited as one of an unverified caller."""
WAITED: Final = "ccp.waited"
"""Where the scope of a request has the seconds that it waited to be started, if it did."""

_VEHICLE_PATHS: Final = frozenset({"/opnc/v1/ccp/signedcontractdata", "/v1/ccp/signedcontractdata"})
_PROBES: Final = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
_TOKEN_PATH: Final = "/oauth/token"  # noqa: S105


def _enough(starts: int) -> int:
    """How many requests of a class that began lately are under way while the loop has enough to do.

    A request takes some turns. Those that wait for a database or another pool keep nothing busy: when the loop is idle
    more are started, up to `max_in_flight`, and those that take long do not count.
    """
    return 16 + 4 * starts


class Reason(StrEnum):
    """Why a request was shed."""

    QUEUE_FULL = "queue_full"
    QUEUE_AGE = "queue_age"
    CLIENT_GONE = "client_gone"


class Request(Protocol):
    """What the admission needs of a request."""

    lane: Lane | None
    """The class in which it waits, or counts as under way."""
    caller: Hashable
    place: tuple[float, int]
    """Where it stands in its queue: tag of fair queueing and a number."""
    arrived: float
    period: int
    """Of its class, in which it was started."""

    def begin(self) -> None:
        """Start the work, or go on with it."""

    def refuse(self) -> None:
        """Answer that it was shed."""

    def drop(self) -> None:
        """Its client has gone: answer nothing."""

    def authorization(self) -> bytes:
        """The header Authorization; empty where there is none."""

    def address(self) -> Hashable:
        """What an unverified caller counts as."""


class Lane:
    """The queue of a class, and how many of its requests are under way.

    max_waiting: length at most while a burst is absorbed. short_queue: length of a queue that lasts. standing_after:
    seconds. max_age: seconds after which a waiting request is shed. max_in_flight: requests started and not answered.
    yields: how many others may be started while this one waits.
    """

    def __init__(
        self,
        name: str,
        *,
        max_waiting: int,
        short_queue: int,
        standing_after: float,
        max_age: float,
        max_in_flight: int,
        yields: int,
    ) -> None:
        self.name: Final = name
        self.cost: Final = _COST[name]
        self.max_waiting: Final = max_waiting
        self.short_queue = short_queue
        self.standing_after: Final = standing_after
        self.max_age: Final = max_age
        self.max_in_flight: Final = max_in_flight
        self.yields: Final = yields
        self.queue: list[tuple[float, int, Request]] = []
        self.in_flight = 0
        self.period = 0
        self._lately = [0, 0]
        self._period_began = 0.0
        self.passed_over = 0
        self.standing = False
        self.refused = False
        """Whether a request was refused since the queue was last found empty."""
        self.delay = 0.0
        """The longest that a request waited since `Admission.measured` was last called."""
        self._lasted = 0.0
        self._refused_at = 0.0
        self._virtual = 0.0
        self._tags: dict[Hashable, float] = {}

    @property
    def limit(self) -> int:
        return self.short_queue if self.standing else self.max_waiting

    def may_start(self, enough: int) -> bool:
        """Whether one more may be started. enough: how many may keep the loop busy."""
        return self._lately[0] + self._lately[1] < enough and self.in_flight < self.max_in_flight

    def started(self, request: Request) -> None:
        request.lane, request.period = self, self.period
        self.in_flight += 1
        self._lately[0] += 1

    def ended(self, request: Request) -> None:
        request.lane = None
        self.in_flight -= 1
        age = self.period - request.period
        if age < 2:
            self._lately[age] -= 1

    def turned(self, now: float) -> None:
        """Called in each turn in which something waits: what has been under way for long does not count any more."""
        if now - self._period_began >= _PERIOD:
            self._period_began = now
            self.period += 1
            self._lately = [0, self._lately[0]]

    def tag(self, caller: Hashable) -> float:
        """The tag of the caller's next request: one behind its last, or behind what is served now."""
        return max(self._virtual, self._tags.get(caller, 0.0)) + 1.0

    def is_full_for(self, caller: Hashable) -> bool:
        """Whether the caller's next request would be shed."""
        return len(self.queue) >= self.limit and self.tag(caller) >= self.queue[-1][0]

    def add(self, request: Request, caller: Hashable, number: int) -> None:
        tag = self.tag(caller)
        if len(self._tags) >= _MAX_TAGS:
            self._tags = {key: value for key, value in self._tags.items() if value > self._virtual}
            if len(self._tags) >= _MAX_TAGS:
                self._tags.clear()
        self._tags[caller] = tag
        request.caller, request.place = caller, (tag, number)
        insort(self.queue, (tag, number, request))

    def next(self) -> Request:
        self._virtual, _, request = self.queue.pop(0)
        return request

    def evict(self) -> Request:
        """Take out the last request of the caller with most."""
        tag, _, request = self.queue.pop()
        self._tags[request.caller] = tag - 1.0
        return request

    def remove(self, request: Request) -> bool:
        """Returns whether it was waiting."""
        found = bisect_left(self.queue, request.place, key=lambda entry: entry[:2])
        if found < len(self.queue) and self.queue[found][2] is request:
            del self.queue[found]
            return True
        return False

    def older_than(self, moment: float) -> list[Request]:
        """Take out those that arrived before a moment."""
        old = [entry[2] for entry in self.queue if entry[2].arrived < moment]
        if old:
            self.queue = [entry for entry in self.queue if entry[2].arrived >= moment]
        return old

    def lasted(self, seconds: float) -> list[Request]:
        """Some more seconds have passed with requests waiting. Returns what no longer fits: the oldest requests."""
        surplus = len(self.queue) - self.short_queue
        if surplus <= MAX_STARTS:  # Those are started in this turn.
            self._lasted = 0.0
            return []
        self._lasted += max(seconds, _LEAST_TURN)
        if self.standing or self._lasted < self.standing_after:
            return []
        self.standing = True
        by_age = sorted(self.queue, key=lambda entry: entry[1])
        self.queue = sorted(by_age[surplus:])
        self._tags = {request.caller: tag for tag, _, request in self.queue}
        return [entry[2] for entry in by_age[:surplus]]

    def emptied(self, now: float) -> None:
        """No request waits."""
        self._lasted, self.passed_over, self._virtual = 0.0, 0, 0.0
        self._tags.clear()
        if self.standing:
            if self.refused:
                self.refused, self._refused_at = False, now
            self.standing = now < self._refused_at + _CALM


class Admission:
    """One for each worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds, monotonic."""
        self._clock = clock
        # A vehicle's answer is wanted within half a second. 512 requests under way are a third of a second of work.
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
        # Its callers are servers, which wait longer, and send the next request when they have the answer.
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
        """How many were shed, by class and reason."""
        self._parties: dict[int, str] = {}
        """By the interpreter's keyed hash (SipHash) of the header, which may be long. A party's share, no right, rests
        on it."""
        self._waiting = 0
        self._left = MAX_STARTS
        self._probes_left = MAX_PROBES
        self._armed = False
        self._contended = False
        self._starts = MIN_STARTS
        self._enough = _enough(MAX_STARTS)
        self._idle = False
        self.epoch = 0
        """Changes every quarter of a second under overload: connections that ask in it are counted in `asking`."""
        self.asking = 0
        self._epoch_began = 0.0
        self._spared = 0.0
        self._number = 0
        self._pumped = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.overloaded = False
        """Whether vehicles have been waiting for a while."""

    @property
    def waiting(self) -> int:
        return self._waiting

    # Requests.

    def offer(self, request: Request, method: str, path: str) -> None:
        """Start a request, now or later, or refuse it."""
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

    def sheds(self, authorization: bytes, address: Hashable) -> bool:
        """Whether a vehicle's request that comes now would be refused, and is hereby. Cheap while there is room.

        address: what an unverified caller counts as; None where the request has to be read for that.
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

    def ended(self, request: Request) -> None:
        """A request that was started is done."""
        lane = request.lane
        if lane is not None:
            lane.ended(request)
            if self._waiting and not self._armed:
                self._arm()

    def gone(self, request: Request) -> None:
        """The client of a request has gone: if it waits it is dropped."""
        lane = request.lane
        if lane is not None and lane.remove(request):
            self._waiting -= 1
            self.shed[lane.name, Reason.CLIENT_GONE] += 1
            request.lane = None
            request.drop()

    def has_time(self) -> bool:
        """Whether a piece of background work may be begun: always without overload, ten times a second under it."""
        if not self.overloaded:
            return True
        now = self._clock()
        if now - self._spared < _SPARE_INTERVAL:
            return False
        self._spared = now
        return True

    def identified(self, authorization: bytes, party: str | None) -> None:
        """Whose an Authorization header is; None where it turned out to be no good."""
        if party is None:
            self._parties.pop(hash(authorization), None)
            return
        # One token can be written with any number of spaces; as clients write it there is one.
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

    def _start(self, request: Request, lane: Lane) -> None:
        lane.started(request)
        request.begin()

    def _refuse(self, request: Request, lane: Lane, reason: Reason) -> None:
        lane.refused = True
        self.shed[lane.name, reason] += 1
        request.lane = None
        request.refuse()

    # Turns of the event loop.

    def _arm(self) -> None:
        self._armed = True
        asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Once in each turn while there is anything to start."""
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
        turn, self._pumped = min(_TURN, now - self._pumped), now
        for lane in self.lanes:
            lane.turned(now)
            if lane.queue:
                for request in lane.lasted(turn):
                    self._waiting -= 1
                    self._refuse(request, lane, Reason.QUEUE_AGE)
        if self.vehicles.standing or self.unverified.standing:
            self.overloaded = True
            self._left = self._starts_for(now)
            self._enough = _enough(self._left)
        while self._left > 0 and (chosen := self._choose()) is not None:
            request = chosen.next()
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
        if self._left > 0:  # Too many are under way.
            self._blocked(now)
        else:
            self._arm()

    def _starts_for(self, now: float) -> int:
        """How many to start in a turn under overload, by how many connections ask."""
        elapsed = now - self._epoch_began
        if elapsed >= _EPOCH:
            if elapsed < 2 * _EPOCH:
                starts = min(_MAX_STARTS_OVERLOADED, max(MIN_STARTS, self.asking // _CONNECTIONS_PER_START))
                self._starts = starts
                self.vehicles.short_queue = self.unverified.short_queue = max(_SHORT_QUEUE, 2 * starts)
            self.epoch, self.asking, self._epoch_began = self.epoch + 1, 0, now
        return self._starts

    def settle(self) -> None:
        """Judge whether there still is an overload. Also called every half second: requests may have stopped coming."""
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
            for request in lane.older_than(now - lane.max_age):
                self._waiting -= 1
                self._refuse(request, lane, Reason.QUEUE_AGE)
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(_BLOCKED_DELAY, self._probe)

    def _probe(self) -> None:
        """Find out whether the loop has nothing to do: then the next turn comes at once."""
        self._timer = None
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_soon(self._probed, self._clock())

    def _probed(self, asked: float) -> None:
        self._idle = self._clock() - asked < _IDLE_TURN
        self._pump()
