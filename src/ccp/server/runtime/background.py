"""Supervised background tasks: logged, counted and restarted; readiness depends on the critical ones.

    background = BackgroundTasks(metrics.task_failed)
    background.add(PeriodicTask("purge", purge, interval=3600, jitter=0.25))
    background.add(PeriodicTask("refresh_parties", refresh, interval=1, critical=True))
    background.spawn("vehicle_evidence", fetch())        # runs once
    background.reasons()                                 # why the worker is not ready
    await background.close()

A round that raises is logged and counted, and the next round follows after a delay that doubles with each failure. A
task that ends without `close` or `stop` is restarted. All durations are seconds of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import structlog

from ccp.errors import CCPError
from ccp.x509.parse_errors import is_panic

_log = structlog.get_logger("ccp.server.runtime.background")

MAX_SILENCE: Final = 30.0
"""Time without success, beyond its interval, after which a critical task makes the worker not ready."""
_MAX_RETRY_DELAY: Final = 300.0
_LOG_INTERVAL: Final = 300.0  # Repeated failures are logged at doubling counts, and at least this often.
_CLOSE_TIMEOUT: Final = 20.0  # For a round that is not interruptible.


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """A function that runs repeatedly.

    name: a constant, the value of the metric label `task`; it must not name a partner or a vehicle.
    run: one round; returns True to run again at once, and raises for a failure.
    interval: from the end of a round to the next; a callable is called each time. `math.inf`: only `wake` starts
    rounds.
    jitter: share of the interval by which it varies, 0.25 for ±25 %, so that workers do not run in step.
    first_delay: before the first round; None: one interval.
    wake: ends the delay early; it is cleared before the round. wake_delay: from a wake to its round, so that one round
    handles several wakes.
    critical: access or trust depends on it: readiness fails while it does not succeed, see `BackgroundTasks.reasons`.
    timeout: for one round, which then counts as failed; None: no limit.
    retry_delay: after the first failure in a row; doubled with each up to max_retry_delay (None: the interval, but no
    more than five minutes and no less than five seconds).
    context: further members of the log event of a failure.
    interruptible: whether closing cancels a round. Otherwise closing waits for it, as for a write.
    """

    name: str
    run: Callable[[], Awaitable[bool | None]]
    interval: float | Callable[[], float]
    jitter: float = 0.0
    first_delay: float | None = None
    wake: asyncio.Event | None = None
    wake_delay: float = 0.0
    critical: bool = False
    timeout: float | None = None
    retry_delay: float = 1.0
    max_retry_delay: float | None = None
    interruptible: bool = True
    context: Mapping[str, Any] = field(default_factory=dict)

    def delay(self) -> float:
        """The time to the next round after a success."""
        interval = self.interval() if callable(self.interval) else self.interval
        if self.jitter and interval < math.inf:
            interval *= random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311  spreads load, no secret
        return interval

    def backoff(self, failures: int) -> float:
        """The time to the next round after a number of consecutive failures."""
        longest = self.max_retry_delay
        if longest is None:
            interval = self.interval() if callable(self.interval) else self.interval
            longest = min(max(interval, 5.0), _MAX_RETRY_DELAY)
        delay = min(self.retry_delay * 2.0 ** min(failures - 1, 30), longest)
        return delay * random.uniform(0.75, 1.0)  # noqa: S311  spreads load, no secret


class Supervised:
    """A running periodic task."""

    def __init__(self, task: PeriodicTask, owner: BackgroundTasks) -> None:
        self.task: Final = task
        self._owner = owner
        self._stopping = False
        self._in_round = False
        self._failures = 0
        self._first_delay = task.delay() if task.first_delay is None else task.first_delay
        self._success_due = time.monotonic() + self._first_delay
        self._restart: asyncio.TimerHandle | None = None
        self._runner: asyncio.Task[None]
        self._start()

    @property
    def failures(self) -> int:
        """Rounds that failed since the last success."""
        return self._failures

    def overdue(self, max_silence: float) -> bool:
        """Whether the next success is overdue by more than `max_silence`."""
        return time.monotonic() > self._success_due + max_silence

    async def stop(self, grace: float = _CLOSE_TIMEOUT) -> None:
        """Stop the task. A round that is not interruptible may finish within the grace period."""
        self._stopping = True
        if self._restart is not None:
            self._restart.cancel()
        if self._in_round and not self.task.interruptible:
            await asyncio.wait([self._runner], timeout=grace)
        self._runner.cancel()
        await asyncio.gather(self._runner, return_exceptions=True)
        self._owner.forget(self)

    def _start(self) -> None:
        self._restart = None
        self._runner = asyncio.create_task(self._loop(), name=self.task.name)
        self._runner.add_done_callback(self._ended)

    def _ended(self, runner: asyncio.Task[None]) -> None:
        """Restart the loop, which ends only by a cancellation from outside or by a defect."""
        if self._stopping:
            return
        exc = None if runner.cancelled() else runner.exception()
        delay = self._failed(exc or RuntimeError("the task was cancelled"))
        self._first_delay = 0.0
        self._restart = asyncio.get_running_loop().call_later(delay, self._start)

    async def _loop(self) -> None:
        delay = self._first_delay
        while not self._stopping:
            await self._sleep(delay)
            delay = await self._round()

    async def _sleep(self, delay: float) -> None:
        wake = self.task.wake
        if wake is None or self._failures or not delay:
            await asyncio.sleep(delay)  # With 0 too, so that other work can run.
            return
        try:
            async with asyncio.timeout(delay if delay < math.inf else None):
                await wake.wait()
        except TimeoutError:
            return
        if self.task.wake_delay:
            await asyncio.sleep(self.task.wake_delay)

    async def _round(self) -> float:
        """Run one round. Returns the time to the next."""
        if self.task.wake is not None:
            self.task.wake.clear()
        self._in_round = True
        try:
            async with asyncio.timeout(self.task.timeout) as limit:
                more = await self.task.run()
        except asyncio.CancelledError as exc:
            runner = asyncio.current_task()
            if self._stopping or (runner is not None and runner.cancelling()):
                raise
            return self._failed(exc)  # A cancellation of something that the round awaited.
        except Exception as exc:
            if isinstance(exc, TimeoutError) and limit.expired():
                exc = TimeoutError(f"it took longer than {self.task.timeout} seconds")
            return self._failed(exc)
        finally:
            self._in_round = False
        if self._failures:
            with contextlib.suppress(Exception):
                _log.info("background task recovered", task=self.task.name, failures=self._failures)
            self._failures = 0
        delay = 0.0 if more else self.task.delay()
        self._success_due = time.monotonic() + delay
        return delay

    def _failed(self, exc: BaseException) -> float:
        self._failures += 1
        delay = self.task.backoff(self._failures)
        self._owner.failed(self.task.name, exc, failures=self._failures, retry_in=round(delay, 2), **self.task.context)
        return delay


class TaskState(NamedTuple):
    """A background task as it is shown. failures: since the last success. reason: of the last one; empty without."""

    name: str
    critical: bool
    failures: int
    reason: str


class BackgroundTasks:
    """The background tasks of one process. Close it before the resources that the tasks use."""

    def __init__(self, count: Callable[[str], None] = lambda task: None, *, max_silence: float | None = None) -> None:
        """count: called with the name of a task that failed. max_silence: see `MAX_SILENCE`."""
        self._count = count
        self._max_silence = MAX_SILENCE if max_silence is None else max_silence
        self._periodic: list[Supervised] = []
        self._spawned: set[asyncio.Task[Any]] = set()
        self._logged: dict[str, tuple[str, float]] = {}

    def add(self, task: PeriodicTask) -> Supervised:
        """Start a periodic task. Needs a running event loop."""
        supervised = Supervised(task, self)
        self._periodic.append(supervised)
        return supervised

    def spawn(self, name: str, work: Coroutine[Any, Any, Any], **context: Any) -> asyncio.Task[Any]:
        """Run a coroutine once. A failure is logged with the context, and counted; the caller need not await it.

        name: as of a PeriodicTask. The caller has to limit the number of such tasks.
        """
        task = asyncio.create_task(self._guarded(name, work, context), name=name)
        self._spawned.add(task)
        task.add_done_callback(self._spawned.discard)
        task.add_done_callback(lambda _: work.close())  # If it was cancelled before it began.
        return task

    def reasons(self) -> list[str]:
        """For readiness: a sentence for each critical task whose success is overdue."""
        return [
            f"The background task {task.task.name} has not succeeded for more than {self._max_silence:g} seconds."
            for task in self._periodic
            if task.task.critical and task.overdue(self._max_silence)
        ]

    def states(self) -> list[TaskState]:
        """The periodic tasks, those that fail first."""
        found = [
            TaskState(
                each.task.name,
                each.task.critical,
                each.failures,
                self._logged.get(each.task.name, ("",))[0] if each.failures else "",
            )
            for each in self._periodic
        ]
        return sorted(found, key=lambda each: (-each.failures, each.name))

    def failed(self, name: str, exc: BaseException, *, failures: int = 1, **context: Any) -> None:
        """Log and count a failure. failures: consecutive ones; repeated failures are logged at doubling counts."""
        self._count(name)
        reason = str(exc) or type(exc).__name__
        now, (before, logged) = time.monotonic(), self._logged.get(name, ("", -math.inf))
        if failures & (failures - 1) and reason == before and now - logged < _LOG_INTERVAL:
            return
        self._logged[name] = reason, now
        expected = isinstance(exc, CCPError)
        more = context if expected else {**context, "exc_info": exc}
        with contextlib.suppress(Exception):  # A failure of logging, such as a closed pipe, must not end the task.
            log = _log.warning if expected else _log.error
            log("background task failed", task=name, reason=reason, failures=failures, **more)

    def forget(self, supervised: Supervised) -> None:
        """Remove a task that was stopped."""
        if supervised in self._periodic:
            self._periodic.remove(supervised)

    async def close(self) -> None:
        """Stop every periodic task and cancel every spawned one."""
        await asyncio.gather(*(task.stop() for task in tuple(self._periodic)))
        spawned = tuple(self._spawned)
        for task in spawned:
            task.cancel()
        await asyncio.gather(*spawned, return_exceptions=True)

    async def _guarded(self, name: str, work: Coroutine[Any, Any, Any], context: dict[str, Any]) -> Any:
        try:
            return await work
        except BaseException as exc:
            if not isinstance(exc, Exception) and not is_panic(exc):
                raise
            self.failed(name, exc, **context)
            return None
