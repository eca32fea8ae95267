"""The queue of one class of requests: fair between callers, and bounded in length and time.

Callers have equal shares by start-time fair queueing: each request gets a tag one after the previous tag of its caller,
and the request with the lowest tag is next.

A short queue absorbs bursts; a long one only adds delay (Nichols and Jacobson, Controlling Queue Delay, ACM Queue
2012). So a queue may be long at first. When it has been longer than `short_queue` for `standing_after` seconds, it is a
standing queue: it is cut to its newest `short_queue` requests, and keeps that limit until it is empty and nothing was
refused for a second.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable
from enum import StrEnum
from typing import Final, Protocol

MAX_STARTS: Final = 8
"""Requests started in one iteration of the event loop: some 5 ms of work, so that new input is read soon."""

_MIN_ELAPSED: Final = 1e-6
_CALM_PERIOD: Final = 1.0
"""Seconds without a refusal after which an overload is over. The requests of many connections come in waves, and a
queue that is empty between two waves must not accept the whole next wave."""
_MAX_TAGS: Final = 4096
_PERIOD: Final = 0.25  # Seconds. A request started in this period or the previous one may keep the event loop busy.
_COST: Final = {"vehicle": 1, "unverified": 1, "bulk": 2, "probe": 1}


class Reason(StrEnum):
    """Why a request was refused without being started."""

    QUEUE_FULL = "queue_full"
    QUEUE_AGE = "queue_age"
    CLIENT_GONE = "client_gone"


class QueuedRequest(Protocol):
    """What the queue needs of a request."""

    lane: Lane | None
    """The class in which it waits or is in progress."""
    caller: Hashable
    place: tuple[float, int]
    """Its position in the queue: tag of fair queueing and sequence number."""
    arrived: float
    period: int
    """The period of its class in which it was started."""

    def begin(self) -> None:
        """Start the request, or continue it."""

    def refuse(self) -> None:
        """Answer 503."""

    def drop(self) -> None:
        """Forget the request, whose client has disconnected."""

    def authorization(self) -> bytes:
        """Return the header Authorization; empty without one."""

    def address(self) -> Hashable:
        """Return what an unverified caller counts as."""


class Lane:
    """The queue of a class and the number of its requests in progress.

    max_waiting: maximum length of a burst. short_queue: maximum length of a standing queue. standing_after: seconds.
    max_age: seconds after which a waiting request is refused. max_in_flight: requests started and not answered.
    yields: requests of other classes that may be started while this one waits.
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
        self.queue: list[tuple[float, int, QueuedRequest]] = []
        self.in_flight = 0
        self.period = 0
        self._lately = [0, 0]
        self._period_began = 0.0
        self.passed_over = 0
        self.standing = False
        self.refused = False
        """Whether a request was refused since the queue was last empty."""
        self.delay = 0.0
        """The longest waiting time since the last report, in seconds."""
        self._standing_for = 0.0
        self._refused_at = 0.0
        self._virtual = 0.0
        self._tags: dict[Hashable, float] = {}

    @property
    def limit(self) -> int:
        """The maximum length of the queue now."""
        return self.short_queue if self.standing else self.max_waiting

    def may_start(self, enough: int) -> bool:
        """Return whether one more may be started. enough: number of recent requests that keep the event loop busy."""
        return self._lately[0] + self._lately[1] < enough and self.in_flight < self.max_in_flight

    def started(self, request: QueuedRequest) -> None:
        """Count a request that was started."""
        request.lane, request.period = self, self.period
        self.in_flight += 1
        self._lately[0] += 1

    def ended(self, request: QueuedRequest) -> None:
        """Stop counting a request that was answered, or that waits for its client."""
        request.lane = None
        self.in_flight -= 1
        age = self.period - request.period
        if age < 2:
            self._lately[age] -= 1

    def roll_period(self, now: float) -> None:
        """Start a new period when one is over. Called in each iteration of the event loop with waiting requests."""
        if now - self._period_began >= _PERIOD:
            self._period_began = now
            self.period += 1
            self._lately = [0, self._lately[0]]

    def next_tag(self, caller: Hashable) -> float:
        """Return the tag of the caller's next request: one after its last, or after the request that is served now."""
        return max(self._virtual, self._tags.get(caller, 0.0)) + 1.0

    def is_full_for(self, caller: Hashable) -> bool:
        """Return whether the caller's next request would be refused."""
        return len(self.queue) >= self.limit and self.next_tag(caller) >= self.queue[-1][0]

    def add(self, request: QueuedRequest, caller: Hashable, number: int) -> None:
        """Queue a request. number: increases with each request."""
        tag = self.next_tag(caller)
        if len(self._tags) >= _MAX_TAGS:
            self._tags = {key: value for key, value in self._tags.items() if value > self._virtual}
            if len(self._tags) >= _MAX_TAGS:
                self._tags.clear()
        self._tags[caller] = tag
        request.caller, request.place = caller, (tag, number)
        insort(self.queue, (tag, number, request))

    def pop(self) -> QueuedRequest:
        """Take out the next request."""
        self._virtual, _, request = self.queue.pop(0)
        return request

    def evict(self) -> QueuedRequest:
        """Take out the last request of the caller with the most requests."""
        tag, _, request = self.queue.pop()
        self._tags[request.caller] = tag - 1.0
        return request

    def remove(self, request: QueuedRequest) -> bool:
        """Take out a request. Returns whether it was waiting."""
        found = bisect_left(self.queue, request.place, key=lambda entry: entry[:2])
        if found < len(self.queue) and self.queue[found][2] is request:
            del self.queue[found]
            return True
        return False

    def pop_older_than(self, time: float) -> list[QueuedRequest]:
        """Take out the requests that arrived before a time."""
        old = [entry[2] for entry in self.queue if entry[2].arrived < time]
        if old:
            self.queue = [entry for entry in self.queue if entry[2].arrived >= time]
        return old

    def elapse(self, duration: float) -> list[QueuedRequest]:
        """Add to the time for which requests have been waiting. Returns the oldest requests, beyond the limit."""
        surplus = len(self.queue) - self.short_queue
        if surplus <= MAX_STARTS:  # These are started in this iteration.
            self._standing_for = 0.0
            return []
        self._standing_for += max(duration, _MIN_ELAPSED)
        if self.standing or self._standing_for < self.standing_after:
            return []
        self.standing = True
        by_age = sorted(self.queue, key=lambda entry: entry[1])
        self.queue = sorted(by_age[surplus:])
        self._tags = {request.caller: tag for tag, _, request in self.queue}
        return [entry[2] for entry in by_age[:surplus]]

    def emptied(self, now: float) -> None:
        """Called when no request waits."""
        self._standing_for, self.passed_over, self._virtual = 0.0, 0, 0.0
        self._tags.clear()
        if self.standing:
            if self.refused:
                self.refused, self._refused_at = False, now
            self.standing = now < self._refused_at + _CALM_PERIOD
