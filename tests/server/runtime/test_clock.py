"""ClockGuard: a table of clock steps."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from ccp.errors import Unavailable
from ccp.server.runtime.clock import TOLERANCE, ClockGuard

BEGAN = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclass
class Clocks:
    """wall, database: how far each is ahead of the time that really passes."""

    passed: timedelta = timedelta(0)
    wall: timedelta = timedelta(0)
    database: timedelta | None = None

    def now(self) -> datetime:
        return BEGAN + self.passed + self.wall

    def uptime(self) -> float:
        return 1000 + self.passed.total_seconds()

    async def theirs(self) -> datetime | None:
        return None if self.database is None else BEGAN + self.passed + self.database

    def guard(self) -> ClockGuard:
        return ClockGuard(self.now, self.theirs, self.uptime)


def plausible(guard: ClockGuard) -> bool:
    problems: list[str] = []
    try:
        asyncio.run(guard.checked())
    except Unavailable as exc:
        problems = [str(exc)]
    assert guard.reasons() == problems
    return not problems


@pytest.mark.parametrize(
    ("wall", "database", "expected"),
    [
        (timedelta(0), None, True),
        (timedelta(0), timedelta(0), True),
        (TOLERANCE, None, True),
        (-TOLERANCE, None, True),
        (TOLERANCE + timedelta(seconds=1), None, False),
        (-TOLERANCE - timedelta(seconds=1), None, False),
        (400 * DAY, None, False),
        (-400 * DAY, None, False),
        (400 * DAY, 400 * DAY, False),  # On one machine both jump, and the database is no witness.
        (timedelta(0), 400 * DAY, False),
        (timedelta(0), -400 * DAY, False),
        (timedelta(0), TOLERANCE, True),
        (timedelta(0), TOLERANCE + timedelta(seconds=1), False),
    ],
)
@pytest.mark.parametrize("passed", [timedelta(0), timedelta(minutes=10), 100 * DAY])
def test_clock_is_plausible_by_what_has_passed_and_by_the_database(
    wall: timedelta, database: timedelta | None, expected: bool, passed: timedelta
) -> None:
    clocks = Clocks()
    guard = clocks.guard()
    assert plausible(guard)
    clocks.passed, clocks.wall, clocks.database = passed, wall, database
    assert plausible(guard) is expected
    clocks.wall, clocks.database = timedelta(0), None if database is None else timedelta(0)
    assert plausible(guard), "back again"


def test_clock_guard_finds_a_wrong_start_by_the_database_clock() -> None:
    clocks = Clocks(wall=400 * DAY, database=timedelta(0))
    assert not plausible(clocks.guard())
    clocks.database = None
    assert plausible(clocks.guard()), "without a database clock the error cannot be detected"


def test_clock_after_a_restart_takes_the_new_time() -> None:
    clocks = Clocks()
    before = clocks.guard()
    clocks.wall = 400 * DAY
    assert not plausible(before)
    assert plausible(clocks.guard())


def test_time_that_is_given_is_the_one_that_was_checked() -> None:
    clocks = Clocks()
    times = iter([BEGAN, BEGAN + 400 * DAY, BEGAN])
    guard = ClockGuard(lambda: next(times), None, clocks.uptime)
    with pytest.raises(Unavailable, match="9600 hours ahead since the pool started"):
        asyncio.run(guard.checked())
    assert asyncio.run(guard.checked()) == BEGAN


def test_database_that_does_not_answer_is_no_reason_to_trust_the_clock() -> None:
    async def silent() -> datetime | None:
        raise Unavailable("The database does not answer now; try again.")

    guard = ClockGuard(lambda: BEGAN, silent, lambda: 0.0)
    with pytest.raises(Unavailable, match="database does not answer"):
        asyncio.run(guard.checked())
    assert guard.reasons() == [], "that is another reason's business"
