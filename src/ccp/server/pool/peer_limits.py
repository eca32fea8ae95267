"""Limits on what one caller may use of a peer, so that a caller cannot affect others.

Vehicles' requests and requests that callers address to a peer use separate connections. For addressed requests each
caller has its own circuit breaker too: a caller whose requests time out, because of their number or their kind, opens
only its own circuit. Vehicles' requests share one circuit for all callers, since they are alike and signed by vehicles.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from ccp.errors import Unavailable
from ccp.errors.codes import ErrorCode
from ccp.server.external.circuit_breaker import CircuitBreaker

_MAX_CIRCUITS: Final = 1000
_MAX_RETRY_AFTER: Final = 3600


def circuit_open(peer: str, retry_after: int) -> Unavailable:
    """The error for a peer whose circuit is open. retry_after: seconds until the next request may try."""
    return Unavailable(
        f"The pool {peer} has not answered lately; try again later.",
        retry_after=retry_after,
        code=ErrorCode.POOL_UNAVAILABLE,
    )


def share_used_up(peer: str) -> Unavailable:
    """The error for a caller that has too many requests to a peer in flight."""
    return Unavailable(f"Too many requests to the pool {peer} are under way.", retry_after=1)


def bounded_retry_after(seconds: float | None) -> int | None:
    """The Retry-After of another pool, in whole seconds from 1 to 3600."""
    return None if seconds is None else min(max(1, math.ceil(seconds)), _MAX_RETRY_AFTER)


class Shares:
    """Requests in flight to one peer, or of one kind, counted by caller and limited for each and for all."""

    def __init__(self, max_total: int, max_per_caller: int) -> None:
        self._max_total = max_total
        self._max_per_caller = max_per_caller
        self._in_flight: Counter[str] = Counter()
        self._total = 0
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    @property
    def is_idle(self) -> bool:
        """Whether no request is in flight and none waits."""
        return not self._total and not self._waiting

    def has_room(self, caller: str) -> bool:
        """Whether the caller may send one more request. The last quarter is for callers with none in flight."""
        count = self._in_flight[caller]
        if count >= self._max_per_caller or self._total >= self._max_total:
            return False
        return not count or self._total < self._max_total * 3 // 4

    @contextmanager
    def taken(self, caller: str) -> Iterator[None]:
        """Count one more request of the caller during the context. Call `has_room` first."""
        self._take(caller)
        try:
            yield
        finally:
            self.release(caller)

    async def acquire(self, caller: str) -> None:
        """Wait until the caller may send one more request, and count it until `release`.

        A caller that has used its share does not block others that wait behind it. The number of waiting requests is
        not limited here.
        """
        if self.has_room(caller):
            self._take(caller)
            return
        permit: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((caller, permit))
        try:
            await permit
        except asyncio.CancelledError:
            if permit.done() and not permit.cancelled():
                self.release(caller)
            else:
                self._waiting.remove((caller, permit))
            raise

    def release(self, caller: str) -> None:
        """End one request of the caller, and let those that wait use the room."""
        self._total -= 1
        self._in_flight[caller] -= 1
        if not self._in_flight[caller]:
            del self._in_flight[caller]
        for waiting in tuple(self._waiting):
            if self._total >= self._max_total:
                break
            name, permit = waiting
            if not permit.done() and self.has_room(name):
                self._waiting.remove(waiting)
                self._take(name)
                permit.set_result(None)

    def _take(self, caller: str) -> None:
        self._in_flight[caller] += 1
        self._total += 1


class Circuits:
    """A circuit breaker for each caller's addressed requests to one peer. Closed circuits are not stored."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: monotonic seconds."""
        self._clock = clock
        self._failing: dict[str, CircuitBreaker] = {}

    def check(self, caller: str, peer: str) -> None:
        """Raises Unavailable while the caller's circuit is open."""
        breaker = self._failing.get(caller)
        if breaker is not None and not breaker.allow():
            raise circuit_open(peer, breaker.retry_after())

    def record_success(self, caller: str) -> None:
        """Close the caller's circuit."""
        self._failing.pop(caller, None)

    def record_failure(self, caller: str) -> None:
        """Count a failure of the caller's circuit."""
        breaker = self._failing.pop(caller, None) or CircuitBreaker(self._clock)
        while len(self._failing) >= _MAX_CIRCUITS:
            del self._failing[next(iter(self._failing))]  # The one whose last failure is the oldest.
        self._failing[caller] = breaker
        breaker.record_failure()

    def release(self, caller: str) -> None:
        """Release a permit whose request says nothing about the peer; the next request may try."""
        breaker = self._failing.get(caller)
        if breaker is not None:
            breaker.release()
