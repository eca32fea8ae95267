"""Guard against an implausible clock: nothing is purged while the clock may be wrong.

    guard = ClockGuard(utc_now, store.time)
    now = await guard.checked()     # for work that removes expired data; raises Unavailable if the clock is implausible
    guard.reasons()                 # for readiness

The wall clock is compared, since the start of the process, with the kernel's uptime clock, which cannot be set, and
with the clock of the database server, if there is one. Only the second comparison finds a clock that was wrong at the
start. After a step the guard stays closed until the clock is back, or the pool is restarted: by the restart an operator
confirms the new time. The replacement of a worker confirms nothing: workers compare since the start of `ccp serve`,
which passes it to them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

import structlog

from ccp.errors import Unavailable
from ccp.server.runtime.background import PeriodicTask

_log = structlog.get_logger("ccp.server.runtime.clock")

TOLERANCE: Final = timedelta(minutes=5)
"""More than the difference of synchronised clocks, and too short to purge anything that is still needed."""
_WATCH_INTERVAL: Final = 2.0  # Seconds.
_BEGAN: Final = "OPNC_CCP_CLOCK_BEGAN"
"""Environment variable: the wall clock time at which the uptime clock was zero, as the parent of the workers saw it."""


Clock: TypeAlias = Callable[[], datetime]
"""Returns the current time, an aware datetime in UTC."""


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


def uptime() -> float:
    """Seconds of a clock that cannot be set, including suspended time if the system provides that."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def hand_over(now: datetime) -> None:
    """Pass the start of this process to the worker processes that it starts. now: the wall clock."""
    os.environ[_BEGAN] = (now - timedelta(seconds=uptime())).isoformat()


class ClockGuard:
    """The guard of one process, created at its start."""

    def __init__(
        self,
        now: Callable[[], datetime],
        database: Callable[[], Awaitable[datetime | None]] | None = None,
        uptime: Callable[[], float] = uptime,
    ) -> None:
        """now: the wall clock. database: returns the clock of the database server, or None without a server."""
        self._now = now
        self._database = database
        self._uptime = uptime
        handed_over = os.environ.get(_BEGAN)
        if handed_over is None:
            self._began = now() - timedelta(seconds=uptime())
        else:
            self._began = datetime.fromisoformat(handed_over)
        self._apart: timedelta | None = None  # Wall clock minus database clock, when last compared.
        self._reported = False

    async def checked(self) -> datetime:
        """The current time. Raises Unavailable if it is implausible, or if the database does not answer."""
        now = self._now()
        problem = self._stepped(now)  # For this reading: the clock may be back a moment later.
        if self._database is not None:
            theirs = await self._database()
            if theirs is not None:
                after = self._now()
                # The database clock was read between `now` and `after`.
                self._apart = now - theirs if now > theirs else min(after - theirs, timedelta(0))
                problem = problem or self._differs()
        self._report(problem)
        if problem is not None:
            raise Unavailable(problem)
        return now

    def reasons(self) -> list[str]:
        """For readiness: why the clock is implausible, by the last comparison with the database; empty if it is not."""
        problem = self._stepped(self._now()) or self._differs()
        return [] if problem is None else [problem]

    def watch_task(self) -> PeriodicTask:
        """The background task that checks the clock, so that a step is logged at once.

        An implausible clock is not a failure of this task.
        """

        async def check() -> None:
            try:
                await self.checked()
            except Unavailable:
                if not self.reasons():
                    raise  # The database does not answer.

        return PeriodicTask("clock_watch", check, _WATCH_INTERVAL)

    def _stepped(self, now: datetime) -> str | None:
        step = now - timedelta(seconds=self._uptime()) - self._began
        if abs(step) <= TOLERANCE:
            return None
        size = _describe(step, "ahead", "back")
        return f"The clock of this machine was set {size} since the pool started; nothing is purged."

    def _differs(self) -> str | None:
        if self._apart is None or abs(self._apart) <= TOLERANCE:
            return None
        size = _describe(self._apart, "ahead of", "behind")
        return f"The clock of this machine is {size} the database server's; nothing is purged."

    def _report(self, problem: str | None) -> None:
        """Log each change once."""
        if problem is not None and not self._reported:
            _log.error("clock implausible", reason=problem)
        elif problem is None and self._reported:
            _log.warning("clock plausible again")
        self._reported = problem is not None


def _describe(difference: timedelta, ahead: str, behind: str) -> str:
    seconds = round(abs(difference).total_seconds())
    size = f"{seconds} seconds" if seconds < 7200 else f"{seconds // 3600} hours"
    return f"{size} {ahead if difference > timedelta(0) else behind}"
