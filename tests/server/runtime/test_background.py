"""Supervision of background tasks that fail, end, hang or are cancelled."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine

import pytest
from structlog.testing import CapturingLogger

from ccp.errors import Unavailable
from ccp.server.runtime import background as module
from ccp.server.runtime.background import BackgroundTasks, PeriodicTask

FAST = {"retry_delay": 0.001, "max_retry_delay": 0.01}


async def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


def run(test: Callable[[BackgroundTasks, Counter[str]], Awaitable[None]], **options: float) -> Counter[str]:
    counted: Counter[str] = Counter()

    def count(task: str) -> None:
        counted[task] += 1

    async def whole() -> None:
        background = BackgroundTasks(count, **options)
        try:
            async with asyncio.timeout(20):
                await test(background, counted)
        finally:
            await background.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(whole())
    return counted


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> CapturingLogger:
    logger = CapturingLogger()
    monkeypatch.setattr(module, "_log", logger)
    return logger


class Rounds:
    """Counts its rounds; the first ones raise."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures = list(failures)
        self.count = 0

    async def __call__(self) -> None:
        self.count += 1
        if self.failures:
            raise self.failures.pop(0)


@pytest.mark.parametrize("failure", [Unavailable("Away."), ValueError("unknown"), KeyError("x"), TimeoutError()])
def test_round_that_fails_is_logged_counted_and_followed_by_another(failure: Exception, log: CapturingLogger) -> None:
    rounds = Rounds(failure)

    async def test(background: BackgroundTasks, counted: Counter[str]) -> None:
        background.add(PeriodicTask("work", rounds, 0.001, **FAST))
        await until(lambda: rounds.count >= 3)

    assert run(test) == {"work": 1}
    failed, recovered = log.calls
    assert (*failed.args, failed.kwargs["task"], failed.kwargs["failures"]) == ("background task failed", "work", 1)
    expected = isinstance(failure, Unavailable)
    assert failed.method_name == ("warning" if expected else "error")
    assert failed.kwargs.get("exc_info") is (None if expected else failure)
    assert (*recovered.args, recovered.kwargs["failures"]) == ("background task recovered", 1)


def test_task_is_not_ended_by_a_log_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_log", None)
    rounds = Rounds(ValueError("broken"), ValueError("broken"))

    async def test(background: BackgroundTasks, counted: Counter[str]) -> None:
        background.add(PeriodicTask("work", rounds, 0.001, **FAST))
        await until(lambda: rounds.count > 4)

    assert run(test) == {"work": 2}


def test_failures_in_a_row_are_all_counted_and_logged_at_doubling_counts(log: CapturingLogger) -> None:
    rounds = Rounds(*(Unavailable("Away.") for _ in range(20)))

    async def test(background: BackgroundTasks, counted: Counter[str]) -> None:
        background.add(PeriodicTask("work", rounds, 0.001, **FAST))
        await until(lambda: rounds.count > 20)

    assert run(test)["work"] == 20
    assert [call.kwargs["failures"] for call in log.calls if "retry_in" in call.kwargs] == [1, 2, 4, 8, 16]


def test_delay_doubles_up_to_its_limit() -> None:
    task = PeriodicTask("work", Rounds(), 3600)
    delays = [task.backoff(failures) for failures in range(1, 13)]
    for delay, most in zip(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300], strict=True):
        assert 0.75 * most <= delay <= most
    assert PeriodicTask("work", Rounds(), 0.2).backoff(9999) <= 5
    assert PeriodicTask("work", Rounds(), 1, max_retry_delay=1).backoff(9999) <= 1


def test_task_that_something_kills_is_started_again() -> None:
    rounds = Rounds()

    async def test(background: BackgroundTasks, counted: Counter[str]) -> None:
        background.add(PeriodicTask("work", rounds, 0.001, **FAST))
        await until(lambda: rounds.count)
        (runner,) = (task for task in asyncio.all_tasks() if task.get_name() == "work")
        runner.cancel()
        await until(runner.done)
        before = rounds.count
        await until(lambda: rounds.count > before)

    assert run(test) == {"work": 1}


def test_task_round_fails_when_what_it_waits_for_is_cancelled() -> None:
    rounds = Rounds(asyncio.CancelledError())

    async def test(background: BackgroundTasks, counted: Counter[str]) -> None:
        background.add(PeriodicTask("work", rounds, 0.001, **FAST))
        await until(lambda: rounds.count >= 3)

    assert run(test) == {"work": 1}


def test_round_that_hangs_fails_at_its_timeout(log: CapturingLogger) -> None:
    begun = 0

    async def hang() -> None:
        nonlocal begun
        begun += 1
        await asyncio.sleep(math.inf)

    async def test(background: BackgroundTasks, counted: Counter[str]) -> None:
        background.add(PeriodicTask("work", hang, 0.001, timeout=0.01, **FAST))
        await until(lambda: begun >= 2)

    assert run(test)["work"] >= 1
    assert log.calls[0].kwargs["reason"] == "it took longer than 0.01 seconds"


def test_reasons_name_critical_tasks_that_do_not_succeed() -> None:
    failing, hanging = Rounds(), asyncio.Event()

    async def fail() -> None:
        if not hanging.is_set():
            raise ValueError("broken")

    async def hang() -> None:
        await hanging.wait()

    async def test(background: BackgroundTasks, counted: Counter[str]) -> None:
        background.add(PeriodicTask("failing", fail, 0.001, critical=True, **FAST))
        background.add(PeriodicTask("hanging", hang, 0.001, critical=True, **FAST))
        background.add(PeriodicTask("well", failing, 0.001, critical=True))
        background.add(PeriodicTask("minor", fail, 0.001, **FAST))
        background.add(PeriodicTask("seldom", fail, 3600, critical=True))
        assert background.reasons() == []
        sentences = [
            f"The background task {name} has not succeeded for more than 0.2 seconds."
            for name in ("failing", "hanging")
        ]
        await until(lambda: background.reasons() == sentences)
        hanging.set()
        await until(lambda: background.reasons() == [])

    run(test, max_silence=0.2)


def test_event_wakes_a_task_and_more_to_do_needs_no_interval() -> None:
    left, wake = 3, asyncio.Event()

    async def work() -> bool:
        nonlocal left
        left -= 1
        return left > 0

    async def test(background: BackgroundTasks, counted: Counter[str]) -> None:
        background.add(PeriodicTask("work", work, math.inf, wake=wake))
        await asyncio.sleep(0.02)
        assert left == 3
        wake.set()
        await until(lambda: left == 0)
        assert not wake.is_set()

    run(test)


def test_task_waits_at_its_end_for_a_round_that_must_not_be_interrupted() -> None:
    begun, written = asyncio.Event(), []

    async def write() -> None:
        begun.set()
        await asyncio.sleep(0.05)
        written.append(1)

    async def test(background: BackgroundTasks, counted: Counter[str]) -> None:
        background.add(PeriodicTask("work", write, 0.0, interruptible=False))
        await begun.wait()

    run(test)
    assert written == [1]


# What PyO3 raises where Rust code panics; it is no Exception.
PANIC = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})


@pytest.mark.parametrize("kind", [ValueError, PANIC], ids=["error", "panic"])
def test_failure_of_what_runs_once_is_logged_with_its_context_and_counted(
    kind: type[BaseException], log: CapturingLogger
) -> None:
    async def fail() -> None:
        raise kind("no")

    async def test(background: BackgroundTasks, counted: Counter[str]) -> None:
        once: Coroutine[None, None, None] = fail()
        assert await background.spawn("once", once, webhook="w") is None
        background.spawn("never", asyncio.sleep(1000))  # Work that does not end by itself.

    assert run(test) == {"once": 1}
    (call,) = log.calls
    assert (call.kwargs["task"], call.kwargs["webhook"], call.kwargs["reason"]) == ("once", "w", "no")
