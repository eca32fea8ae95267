"""Supervised threads to which an event loop hands jobs.

    writer = JobThread("database writer", serve, not_started="…", unconfirmed="…")
    await writer.start()
    result = await writer.run(work, 5.0)
    writer.reasons()                                 # why the worker is not ready
    await writer.stop()

A thread that ends without `stop` is restarted, with a delay that doubles with each failure. Until then every queued or
new job fails with Unavailable, so no caller waits for a thread that does not run. A hanging thread cannot be ended; its
callers get Unavailable after their time limit, later ones at once.

Threads are daemons: the process can end without them. All durations are seconds of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

import structlog

from ccp.errors import Unavailable

_log = structlog.get_logger("ccp.server.runtime.threads")

_FIRST_DELAY: Final = 0.1
_MAX_DELAY: Final = 5.0
_STOP_TIMEOUT: Final = 10.0
_MARGIN: Final = 1.0
"""Seconds after the time limit of a job until its thread counts as hanging."""


class Job:
    """Work for a thread, and the future that the caller awaits."""

    __slots__ = ("_claim", "result", "time_limit", "work")

    def __init__(self, work: Any, result: asyncio.Future[Any], time_limit: float) -> None:
        self.work = work
        self.result = result
        self.time_limit = time_limit
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """True for the first call only: by the thread that begins the work, or by the caller that abandons it."""
        return self._claim.acquire(blocking=False)


Outcome: TypeAlias = tuple[Job, Any, BaseException | None]
"""A job, its result, and its exception."""


class Inbox:
    """The job queue of one run of a thread. The thread calls the methods; any thread may read the attributes.

    restarted: an earlier run of the thread has failed. busy_since: when the current jobs were taken, None while the
    thread is idle. max_busy: time that they may take, seconds.
    """

    def __init__(self, owner: JobThread, loop: asyncio.AbstractEventLoop, *, restarted: bool) -> None:
        self._owner = owner
        self._loop = loop
        self.restarted = restarted
        self.queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.taken: Sequence[Job] = ()
        self.busy_since: float | None = None
        self.max_busy = 0.0
        self.accepts = False
        self.error: BaseException | None = None

    def ready(self) -> None:
        """Report that the thread has opened its resources and takes jobs."""
        self._loop.call_soon_threadsafe(self._owner.became_ready, self)

    def take(self, max_jobs: int) -> Sequence[Job]:
        """Wait for jobs. Empty: the thread has to end. The jobs taken before count as finished."""
        self.taken, self.busy_since = (), None
        first = self.queue.get()
        if first is None:
            return ()
        jobs = [first]
        while len(jobs) < max_jobs and not self.queue.empty():
            following = self.queue.get()
            if following is None:
                self.queue.put(None)  # For the next call.
                break
            jobs.append(following)
        self.max_busy = max(job.time_limit for job in jobs) + _MARGIN
        self.taken, self.busy_since = jobs, time.monotonic()
        return jobs

    def ended(self) -> None:
        """Report the end of the run. The owner also detects it without this call."""
        with contextlib.suppress(RuntimeError):  # The event loop is closed.
            self._loop.call_soon_threadsafe(self._owner.ended, self)

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """Deliver outcomes to the callers."""
        self._loop.call_soon_threadsafe(self._owner.deliver, outcomes)


class JobThread:
    """A supervised thread. Belongs to one event loop, which calls everything here except `serve`."""

    def __init__(
        self,
        name: str,
        serve: Callable[[Inbox], None],
        *,
        not_started: str,
        unconfirmed: str,
        expired: Callable[[], None] = lambda: None,
        unavailable: type[Unavailable] = Unavailable,
    ) -> None:
        """name: for readiness and the log. serve: runs in the thread; it opens its resources, calls `ready`, and takes
        jobs until `take` returns none. An exception ends the run and fails the jobs that it took.

        not_started, unconfirmed: error sentences for jobs that were not begun, and for those with an unknown outcome.
        expired: called when a running job exceeds its time limit. unavailable: the class of the error that `run`
        raises for them.
        """
        self._name = name
        self._serve = serve
        self._not_started = not_started
        self._unconfirmed = unconfirmed
        self._expired = expired
        self._unavailable = unavailable
        self._thread: threading.Thread | None = None
        self._inbox: Inbox | None = None
        self._first: asyncio.Future[None] | None = None
        self._restart: asyncio.TimerHandle | None = None
        self._stopped: asyncio.Event | None = None
        self._failures = 0

    async def start(self) -> None:
        """Start the thread and wait until it takes jobs. Raises what `serve` raises before."""
        self._first = asyncio.get_running_loop().create_future()
        self._begin()
        await self._first

    async def run(self, work: Any, time_limit: float) -> Any:
        """Run a job in the thread. Raises what it raises, and Unavailable.

        time_limit: seconds, including the time in the queue. A thread that takes longer counts as hanging.
        """
        inbox = self._inbox
        if inbox is None or not inbox.accepts or self._problem() is not None:
            raise self._unavailable(self._not_started)
        loop = asyncio.get_running_loop()
        job = Job(work, loop.create_future(), time_limit)
        inbox.queue.put(job)
        expiry = loop.call_later(time_limit, self._expire, job)
        try:
            return await job.result
        finally:
            expiry.cancel()
            if job.result.cancelled():
                job.claim()  # The caller was cancelled: a job that was not begun is dropped.

    def reasons(self) -> list[str]:
        """For readiness: a sentence if the thread runs no jobs."""
        problem = self._problem()
        return [] if problem is None else [problem]

    @property
    def queued(self) -> int:
        """The number of jobs that wait."""
        return 0 if self._inbox is None else self._inbox.queue.qsize()

    @property
    def is_busy(self) -> bool:
        """Whether jobs are running."""
        return self._inbox is not None and self._inbox.busy_since is not None

    async def stop(self) -> None:
        """Finish the queued jobs and end the thread."""
        self._stopped = asyncio.Event()
        if self._restart is not None:
            self._restart.cancel()
        if self._inbox is None:
            return
        self._inbox.accepts = False
        self._inbox.queue.put(None)
        try:
            async with asyncio.timeout(_STOP_TIMEOUT):
                await self._stopped.wait()
        except TimeoutError:
            _log.error("thread does not end", thread=self._name, timeout=_STOP_TIMEOUT)

    # --- Called in the event loop by a run of the thread ---

    def became_ready(self, inbox: Inbox) -> None:
        """Accept jobs for this run."""
        if inbox is not self._inbox:
            return
        inbox.accepts = self._stopped is None
        if inbox.restarted:
            _log.info("thread recovered", thread=self._name, failures=self._failures)
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    def deliver(self, outcomes: Iterable[Outcome]) -> None:
        """Set the results of jobs."""
        for job, result, error in outcomes:
            if error is None:
                self._failures = 0
            if job.result.done():
                continue  # The caller was cancelled or timed out.
            if error is None:
                job.result.set_result(result)
            else:
                job.result.set_exception(error)

    def _begin(self) -> None:
        self._restart = None
        inbox = Inbox(self, asyncio.get_running_loop(), restarted=self._failures > 0)
        self._inbox = inbox
        self._thread = threading.Thread(target=self._run, args=(inbox,), name=self._name, daemon=True)
        try:
            self._thread.start()
        except (RuntimeError, MemoryError) as exc:  # The system cannot create a thread.
            inbox.error = exc
            self.ended(inbox)

    def _run(self, inbox: Inbox) -> None:
        """The thread's main function. `_problem` detects an end that this function cannot report."""
        try:
            self._serve(inbox)
        except BaseException as exc:
            inbox.error = exc
        finally:
            inbox.ended()

    def ended(self, inbox: Inbox) -> None:
        """Fail the jobs of a run that has ended, and schedule the next run."""
        if inbox is not self._inbox:
            return
        self._inbox = None
        error = inbox.error
        self._fail(inbox, error)
        if self._stopped is not None:
            self._stopped.set()
            return
        error = error or RuntimeError("the thread returned")
        if self._first is not None and not self._first.done():
            self._first.set_exception(error)
            return
        self._failures += 1
        delay = min(_FIRST_DELAY * 2.0 ** min(self._failures - 1, 30), _MAX_DELAY)
        if not self._failures & (self._failures - 1):  # Repeated failures are logged at doubling counts.
            _log.error("thread failed", thread=self._name, failures=self._failures, retry_in=delay, exc_info=error)
        self._restart = asyncio.get_running_loop().call_later(delay, self._begin)

    def _fail(self, inbox: Inbox, error: BaseException | None) -> None:
        """Fail the jobs that a run took and those in its queue."""
        jobs = list(inbox.taken)
        with contextlib.suppress(queue.Empty):
            while True:
                if (job := inbox.queue.get_nowait()) is not None:
                    jobs.append(job)
        for job in jobs:
            unavailable = self._unavailable(self._not_started if job.claim() else self._unconfirmed)
            unavailable.__cause__ = error
            if not job.result.done():
                job.result.set_exception(unavailable)

    def _expire(self, job: Job) -> None:
        if job.result.done():
            return
        started = not job.claim()
        job.result.set_exception(self._unavailable(self._unconfirmed if started else self._not_started))
        if started:
            self._expired()

    def _problem(self) -> str | None:
        """Why the thread runs no jobs, as a sentence; None if it does."""
        inbox, thread = self._inbox, self._thread
        if inbox is not None and thread is not None and thread.ident is not None and not thread.is_alive():
            self.ended(inbox)
            inbox = None
        if inbox is None or not inbox.accepts:
            return f"The {self._name} does not run; it is being started again."
        since = inbox.busy_since
        if since is not None and time.monotonic() > since + inbox.max_busy:
            return f"The {self._name} has hung for more than {inbox.max_busy:g} seconds."
        return None
