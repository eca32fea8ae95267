"""Guard against a clock that jumps: nothing is purged while the clock is implausible.

    guard = ClockGuard(now, store.time)
    at = await guard.checked()      # the time, for work that removes what is past; Unavailable where it is implausible
    guard.reasons()                 # for readiness

Since the process started, the wall clock is compared with the kernel's uptime clock, which cannot be set, and with the
database server's clock where there is one. Only the second comparison finds a clock that was wrong at the start. After
a step the guard stays closed until the clock is back, or the pool is restarted: with the restart an operator confirms
the new time. A worker that replaces another one confirms nothing: workers compare since the start of `ccp serve`, which
hands it over to them.
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
"""More than synchronised clocks ever differ, and too short to purge anything that is still needed."""
_WATCH_SECONDS: Final = 2.0
_BEGAN: Final = "OPNC_CCP_CLOCK_BEGAN"
"""Environment variable: the wall clock when the uptime clock was zero, as the parent of the workers saw it."""


Clock: TypeAlias = Callable[[], datetime]
"""Returns the current time, an aware datetime in UTC."""


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


def uptime() -> float:
    """Seconds of a clock that cannot be set; where the system has one, it also counts while the machine sleeps."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def hand_over(now: datetime) -> None:
    """Let worker processes that this one starts compare with its own start. now: the wall clock."""
    os.environ[_BEGAN] = (now - timedelta(seconds=uptime())).isoformat()


class ClockGuard:
    """One for each process, made at its start."""

    def __init__(
        self,
        now: Callable[[], datetime],
        database: Callable[[], Awaitable[datetime | None]] | None = None,
        uptime: Callable[[], float] = uptime,
    ) -> None:
        """now: the wall clock. database: the clock of the database server, None for none."""
        self._now = now
        self._database = database
        self._uptime = uptime
        handed_over = os.environ.get(_BEGAN)
        if handed_over is None:
            self._began = now() - timedelta(seconds=uptime())
        else:
            self._began = datetime.fromisoformat(handed_over)
        self._apart: timedelta | None = None  # How far the wall clock was ahead of the database's when last compared.
        self._told = False

    async def checked(self) -> datetime:
        """The time now. Raises Unavailable if it is implausible, or the database does not answer."""
        at = self._now()
        problem = self._stepped(at)  # Of this very reading: the clock may be back a moment later.
        if self._database is not None:
            theirs = await self._database()
            if theirs is not None:
                after = self._now()
                # It was read at some moment between the two.
                self._apart = at - theirs if at > theirs else min(after - theirs, timedelta(0))
                problem = problem or self._differs()
        self._tell(problem)
        if problem is not None:
            raise Unavailable(problem)
        return at

    def reasons(self) -> list[str]:
        """Why the clock is implausible, by the last comparison with the database; empty if it is plausible."""
        problem = self._stepped(self._now()) or self._differs()
        return [] if problem is None else [problem]

    def watching(self) -> PeriodicTask:
        """Looks at the clock, so that a jump is logged at once. An implausible clock is no failure of this task."""

        async def look() -> None:
            try:
                await self.checked()
            except Unavailable:
                if not self.reasons():
                    raise  # Of the database.

        return PeriodicTask("clock_watch", look, _WATCH_SECONDS)

    def _stepped(self, at: datetime) -> str | None:
        step = at - timedelta(seconds=self._uptime()) - self._began
        if abs(step) <= TOLERANCE:
            return None
        size = _spoken(step, "ahead", "back")
        return f"The clock of this machine was set {size} since the pool started; nothing is purged."

    def _differs(self) -> str | None:
        if self._apart is None or abs(self._apart) <= TOLERANCE:
            return None
        size = _spoken(self._apart, "ahead of", "behind")
        return f"The clock of this machine is {size} the database server's; nothing is purged."

    def _tell(self, problem: str | None) -> None:
        """Log each change once."""
        if problem is not None and not self._told:
            _log.error("clock implausible", reason=problem)
        elif problem is None and self._told:
            _log.warning("clock plausible again")
        self._told = problem is not None


def _spoken(difference: timedelta, ahead: str, behind: str) -> str:
    seconds = round(abs(difference).total_seconds())
    size = f"{seconds} seconds" if seconds < 7200 else f"{seconds // 3600} hours"
    return f"{size} {ahead if difference > timedelta(0) else behind}"
