"""Limits on what one caller may use of a peer, so that a caller cannot affect others.

Requests of vehicles and requests that callers address to a peer have connections of their own. For addressed requests
each caller has a circuit breaker of its own too: a caller whose requests time out, by their number or their kind, opens
it for itself. The circuit for vehicles is one for all callers, since their requests are alike and signed by vehicles.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from ccp.errors import Unavailable
from ccp.server.external.circuit_breaker import CircuitBreaker

_MAX_CIRCUITS: Final = 1000


def circuit_open(peer: str, seconds: int) -> Unavailable:
    return Unavailable(f"The pool {peer} has not answered lately; try again later.", retry_after=seconds)


def share_used_up(peer: str) -> Unavailable:
    return Unavailable(f"Too many requests to the pool {peer} are under way.", retry_after=1)


def whole_seconds(after: float | None) -> int | None:
    """What another pool asks to wait, in reason."""
    return None if after is None else min(max(1, math.ceil(after)), 3600)


class Shares:
    """Requests under way to one peer, or of one kind, counted by caller."""

    def __init__(self, max_in_all: int, max_per_caller: int) -> None:
        self._max_in_all = max_in_all
        self._max_per_caller = max_per_caller
        self._under_way: Counter[str] = Counter()
        self._total = 0
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    def has_room(self, caller: str) -> bool:
        """Whether the caller may send one more. The last quarter is for callers with nothing under way."""
        mine = self._under_way[caller]
        if mine >= self._max_per_caller or self._total >= self._max_in_all:
            return False
        return not mine or self._total < self._max_in_all * 3 // 4

    @contextmanager
    def taken(self, caller: str) -> Iterator[None]:
        """While it lasts, one more request of the caller is under way. Ask `has_room` first."""
        self._take(caller)
        try:
            yield
        finally:
            self.release(caller)

    async def acquire(self, caller: str) -> None:
        """Wait until the caller may send one more, and count it until `release`.

        Callers that have used their share wait without keeping others from theirs. Who calls this bounds how many wait.
        """
        if self.has_room(caller):
            self._take(caller)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((caller, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(caller)
            else:
                self._waiting.remove((caller, turn))
            raise

    def release(self, caller: str) -> None:
        self._total -= 1
        self._under_way[caller] -= 1
        if not self._under_way[caller]:
            del self._under_way[caller]
        for waiting in tuple(self._waiting):
            if self._total >= self._max_in_all:
                break
            name, turn = waiting
            if not turn.done() and self.has_room(name):
                self._waiting.remove(waiting)
                self._take(name)
                turn.set_result(None)

    def _take(self, caller: str) -> None:
        self._under_way[caller] += 1
        self._total += 1


class Circuits:
    """A circuit breaker for each caller's addressed requests to one peer. Those that work are not remembered."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failing: dict[str, CircuitBreaker] = {}

    def check(self, caller: str, peer: str) -> None:
        """Raises Unavailable while the caller's circuit is open."""
        breaker = self._failing.get(caller)
        if breaker is not None and not breaker.allow():
            raise circuit_open(peer, breaker.retry_after())

    def record_success(self, caller: str) -> None:
        self._failing.pop(caller, None)

    def record_failure(self, caller: str) -> None:
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
