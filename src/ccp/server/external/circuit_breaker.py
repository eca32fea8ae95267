"""Leaving somebody alone who does not answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

_FAILURES: Final = 3  # In a row, after which somebody is left alone.
FIRST_REST: Final = 15.0
LONGEST_REST: Final = 300.0


class Breaker:
    """Leaves somebody alone after failures in a row, each time twice as long; then lets one request try.

    clock: seconds that never go back. first_rest, longest_rest: seconds. tell: is told whenever somebody begins to be
    left alone (True), or answers again (False).
    """

    def __init__(
        self,
        clock: Callable[[], float],
        first_rest: float = FIRST_REST,
        longest_rest: float = LONGEST_REST,
        tell: Callable[[bool], None] = lambda resting: None,
    ) -> None:
        self._clock = clock
        self._tell = tell
        self._first_rest = first_rest
        self._longest_rest = longest_rest
        self._failures = 0
        self._rests_until = 0.0
        self._rest = first_rest
        self._trying = False

    @property
    def rests(self) -> bool:
        """Whether it lets nothing through now."""
        return self._failures >= _FAILURES and self._clock() < self._rests_until

    @property
    def is_open(self) -> bool:
        """Whether it has counted failures enough to refuse: until one request that may try succeeds."""
        return self._failures >= _FAILURES

    def lets_through(self) -> bool:
        if self._failures < _FAILURES:
            return True
        if self.rests:
            return False
        self._rests_until = self._clock() + self._rest  # Until the one that tries has come back.
        self._trying = True
        return True

    def seconds_left(self) -> int:
        """Until the next request may try; at least one."""
        return max(1, math.ceil(self._rests_until - self._clock()))

    def unused(self) -> None:
        """What was let through came to no try; the next one may."""
        if self._trying:
            self._trying = False
            self._rests_until = min(self._rests_until, self._clock())

    def succeeded(self) -> None:
        if self._failures >= _FAILURES:
            self._tell(False)
        self._failures, self._rest, self._trying = 0, self._first_rest, False

    def failed(self) -> None:
        if self._failures >= _FAILURES:
            if not self._trying:
                return  # It began before, together with those that have failed.
            self._trying = False
            self._rest = min(2 * self._rest, self._longest_rest)
        self._failures += 1
        if self._failures == _FAILURES:
            self._tell(True)
        if self._failures >= _FAILURES:
            self._rests_until = self._clock() + self._rest
