"""Circuit breaker for remote hosts.

    if not breaker.allow():
        raise Unavailable(…, retry_after=breaker.retry_after())
    …
    breaker.record_success()        # or record_failure(), or release() if the call says nothing about the host

Webhooks, peers, hosts that certificates name and the Provisioning Certificate Pool use it. The PostgreSQL connection
pool has a circuit of its own (`ccp.server.storage.engine.postgres_pool`): a background probe opens and closes it, not
the outcome of requests, so it has neither trial calls nor a reset timeout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

_FAILURES: Final = 3  # Consecutive failures that open the circuit.
RESET_TIMEOUT: Final = 15.0
MAX_RESET_TIMEOUT: Final = 300.0


class CircuitBreaker:
    """Rejects calls after consecutive failures; then lets one trial call pass per reset timeout.

    Closed: every call passes. Open: every call is rejected until the reset timeout has passed. Half-open: one trial
    call passes; success closes the circuit, failure opens it again with twice the reset timeout.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        reset_timeout: float = RESET_TIMEOUT,
        max_reset_timeout: float = MAX_RESET_TIMEOUT,
        on_state_change: Callable[[bool], None] = lambda is_open: None,
    ) -> None:
        """clock: monotonic seconds. reset_timeout, max_reset_timeout: seconds; the timeout doubles up to the maximum.

        on_state_change: called with True when the circuit opens, with False when it closes.
        """
        self._clock = clock
        self._on_state_change = on_state_change
        self._min_reset_timeout = reset_timeout
        self._max_reset_timeout = max_reset_timeout
        self._failures = 0
        self._open_until = 0.0
        self._reset_timeout = reset_timeout
        self._trial_running = False

    @property
    def is_open(self) -> bool:
        """Whether every call is rejected now. False if the reset timeout has passed and a trial may start."""
        return self._failures >= _FAILURES and self._clock() < self._open_until

    @property
    def is_closed(self) -> bool:
        """Whether every call passes: there were too few failures, or a trial has succeeded since."""
        return self._failures < _FAILURES

    def allow(self) -> bool:
        """Whether a call may start now. If so, report its outcome, or call `release`."""
        if self._failures < _FAILURES:
            return True
        if self.is_open:
            return False
        self._open_until = self._clock() + self._reset_timeout  # Rejects other calls while the trial runs.
        self._trial_running = True
        return True

    def retry_after(self) -> int:
        """Seconds until the next call may start, at least one."""
        return max(1, math.ceil(self._open_until - self._clock()))

    def release(self) -> None:
        """Give back a permit that was not used: the next call may be the trial."""
        if self._trial_running:
            self._trial_running = False
            self._open_until = min(self._open_until, self._clock())

    def record_success(self) -> None:
        """The host answered: close the circuit."""
        if self._failures >= _FAILURES:
            self._on_state_change(False)
        self._failures, self._reset_timeout, self._trial_running = 0, self._min_reset_timeout, False

    def record_failure(self) -> None:
        """The host failed. Failures of calls that were under way when the circuit opened do not count."""
        if self._failures >= _FAILURES:
            if not self._trial_running:
                return
            self._trial_running = False
            self._reset_timeout = min(2 * self._reset_timeout, self._max_reset_timeout)
        self._failures += 1
        if self._failures == _FAILURES:
            self._on_state_change(True)
        if self._failures >= _FAILURES:
            self._open_until = self._clock() + self._reset_timeout
