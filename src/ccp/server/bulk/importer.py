"""The import: reads chunks, has them checked, writes contracts, reports rejected lines and saves its progress.

    reader thread -> worker processes, two batches each -> writer, in the order of the input -> report, checkpoint

Results are processed in the order of the input. A contract waits for earlier ones with the same EMAID or vehicle; all
others are written concurrently, and the store groups their commits. Each contract is one transaction, the same as for a
PUT: claim of the EMAID, then the vehicle. So an import takes no locks that a PUT would not take, and cannot deadlock
with running servers.

An import can be repeated after any interruption. A chunk counts as done when it is durable, and the checkpoint is
written after that. Contracts that were stored after the last checkpoint are found unchanged in the database and
skipped.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from ccp.errors import ConfigurationError, LimitExceeded, MismatchError, Unavailable
from ccp.schemas.error_messages import error_messages
from ccp.server.app import Services, build_services
from ccp.server.bulk.checkpoint import Checkpoint, load_key
from ccp.server.bulk.input_reader import InputReader
from ccp.server.bulk.lines import Chunk, InputOffset, InputSource
from ccp.server.bulk.messages import AcceptedLine, BatchResult, RejectedLine, WorkerConfig
from ccp.server.bulk.report import RejectedLinesReport
from ccp.server.bulk.worker_pool import BATCHES_PER_WORKER, WorkerPool
from ccp.server.domain.parties import Caller
from ccp.server.runtime.clock import utc_now
from ccp.server.settings import Settings
from ccp.server.storage.queries.bulk import import_contract

T = TypeVar("T")

_CONCURRENT_WRITES: Final = 256
_CHECKPOINT_INTERVAL: Final = 1.0  # Seconds.
_WRITE_ATTEMPTS: Final = 6  # While the database is unavailable, with delays of 0.5, 1, 2, … seconds between them.
_CHUNKS_BETWEEN: Final = 4  # Chunks in the queues, beside those that workers have.
_MAX_SENTENCES: Final = 20  # Different warnings that are counted; all others are counted together.

CREATED, UPDATED, MOVED, UNCHANGED, REFUSED = "created", "updated", "moved", "unchanged", "refused"
OUTCOMES: Final = (CREATED, UPDATED, MOVED, UNCHANGED, REFUSED)

_Checked: TypeAlias = asyncio.Queue[tuple[Chunk, asyncio.Task[BatchResult]] | None]
_Written: TypeAlias = asyncio.Queue[tuple[Chunk, list[RejectedLine | asyncio.Task[str | RejectedLine]]] | None]


@dataclass(slots=True)
class ImportProgress:
    """The progress of an import.

    counts: lines by outcome, over all its runs. warnings: of this run, by sentence. lines_done: lines that this run has
    done. position: see `InputOffset`. resumed_after: lines that earlier runs have done.
    """

    counts: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    lines_done: int = 0
    position: int = 0
    interrupted: bool = False
    resumed_after: int = 0


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """What to import and how.

    workers: number of processes. checkpoint, report: files, or None. on_progress: is called after each chunk.
    """

    source: InputSource
    caller: Caller
    workers: int
    checkpoint: Path | None
    report: Path | None
    on_progress: Callable[[ImportProgress], None] = lambda progress: None


async def run(config: Settings, plan: ImportPlan) -> ImportProgress:
    """Import everything. SIGINT and SIGTERM end the import after the chunks in progress.

    Raises ConfigurationError if the input cannot be read or is not that of the checkpoint, Unavailable if the database
    cannot be written. The checkpoint then has the progress so far.
    """
    services = build_services(config)
    await services.open()
    try:
        return await _Import(config, plan, services).run()
    finally:
        await services.close()


class _Import:
    """One run of an import."""

    def __init__(self, config: Settings, plan: ImportPlan, services: Services) -> None:
        self._config = config
        self._plan = plan
        self._services = services
        self._progress = ImportProgress()
        self._stop = asyncio.Event()
        self._write_slots = asyncio.Semaphore(_CONCURRENT_WRITES)
        self._writes: dict[str, asyncio.Task[str | RejectedLine]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last_time = utc_now()
        self._unreadable: ConfigurationError | None = None
        self._reached: InputOffset | None = None
        self._saved: InputOffset | None = None
        self._report: RejectedLinesReport | None = None
        self._key = b""

    async def run(self) -> ImportProgress:
        """Import from the checkpoint, or from the beginning."""
        plan, progress = self._plan, self._progress
        self._key = await load_key(self._services.store)
        checkpoint = Checkpoint.load(plan.checkpoint, self._key) if plan.checkpoint else None
        if checkpoint is not None:
            progress.counts.update(checkpoint.counts)
            progress.resumed_after = checkpoint.offset.lines
        self._report = RejectedLinesReport(plan.report, checkpoint)
        try:
            await self._run_stages(checkpoint)
            if not progress.interrupted and plan.checkpoint is not None:
                self._report.sync()
                plan.checkpoint.unlink(missing_ok=True)
                self._reached = None
        finally:
            self._save()
            self._report.close()
        return progress

    async def _run_stages(self, checkpoint: Checkpoint | None) -> None:
        """Run the stages of the import concurrently until the input ends."""
        # Limits the chunks between the reader and the database, and so the memory.
        permits = asyncio.Semaphore(self._plan.workers * BATCHES_PER_WORKER + _CHUNKS_BETWEEN)
        checked: _Checked = asyncio.Queue()
        written: _Written = asyncio.Queue()
        plan, loop = self._plan, asyncio.get_running_loop()
        reader = InputReader(plan.source, self._config.max_body, checkpoint, plan.checkpoint, loop)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        try:
            async with WorkerPool(self._services) as workers, asyncio.TaskGroup() as group:
                await workers.start(plan.workers, WorkerConfig(self._config.model_dump(), plan.caller))
                group.create_task(self._check_all(reader, workers, permits, checked))
                group.create_task(self._write_all(checked, written))
                group.create_task(self._finish_all(written, permits))
            if self._unreadable is not None:
                raise self._unreadable
        except BaseExceptionGroup as failures:
            raise _root_cause(failures) from None
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            reader.stop()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _interrupt(self) -> None:
        """Read no more, and complete the chunks in progress. The next signal has its default effect."""
        self._progress.interrupted = True
        self._stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    async def _check_all(
        self, reader: InputReader, workers: WorkerPool, permits: asyncio.Semaphore, checked: _Checked
    ) -> None:
        """Stage 1: have chunks checked by the workers."""
        stopped = asyncio.create_task(self._stop.wait())
        try:
            while True:
                await permits.acquire()
                following = asyncio.create_task(reader.next())
                await asyncio.wait({following, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    break
                try:
                    chunk = following.result()
                except ConfigurationError as exc:  # What was read before the error is still imported.
                    self._unreadable = exc
                    break
                if chunk is None or self._stop.is_set():
                    break
                now = self._last_time = max(utc_now(), self._last_time + timedelta(milliseconds=1))
                checked.put_nowait((chunk, self._spawn(workers.check(chunk, now))))
        finally:
            stopped.cancel()
        checked.put_nowait(None)

    async def _write_all(self, checked: _Checked, written: _Written) -> None:
        """Stage 2: start to write the accepted contracts, in order."""
        while (item := await checked.get()) is not None:
            chunk, checking = item
            outcomes = (await checking).outcomes
            written.put_nowait(
                (
                    chunk,
                    [
                        outcome if isinstance(outcome, RejectedLine) else self._start_write(outcome)
                        for outcome in outcomes
                    ],
                )
            )
        written.put_nowait(None)

    def _start_write(self, accepted: AcceptedLine) -> asyncio.Task[str | RejectedLine]:
        """Write a contract after earlier ones with the same EMAID or vehicle."""
        names = (f"emaid {accepted.contract.emaid}", f"pcid {accepted.contract.pcid}")
        earlier = {task for name in names if (task := self._writes.get(name)) is not None}
        task = self._spawn(self._write(accepted, earlier))
        for name in names:
            self._writes[name] = task
        task.add_done_callback(lambda done: self._forget_write(names, done))
        for sentence in accepted.warnings:
            known = sentence in self._progress.warnings or len(self._progress.warnings) < _MAX_SENTENCES
            self._progress.warnings[sentence if known else "Other warnings."] += 1
        return task

    def _spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Mark the exception as retrieved: the first of several errors ends the import, the others are dropped.
            task.exception()

    def _forget_write(self, names: Iterable[str], task: asyncio.Task[str | RejectedLine]) -> None:
        for name in names:
            if self._writes.get(name) is task:
                del self._writes[name]

    async def _write(
        self, accepted: AcceptedLine, earlier: set[asyncio.Task[str | RejectedLine]]
    ) -> str | RejectedLine:
        """Store a contract. Returns one of `OUTCOMES`, or why it was refused. Raises Unavailable."""
        if earlier:
            await asyncio.wait(earlier)
        contract, publication = accepted.contract, self._services.pool.publication
        transaction = publication.transaction(self._plan.caller, contract, default=accepted.default)
        async with self._write_slots:
            for attempt in range(_WRITE_ATTEMPTS):
                try:
                    published = await self._services.store.write(import_contract(contract, transaction))
                    break
                except Unavailable:
                    if attempt == _WRITE_ATTEMPTS - 1:
                        raise
                    await asyncio.sleep(0.5 * 2**attempt)
                except (LimitExceeded, MismatchError) as exc:  # Errors that PUT answers with 400 at this point.
                    return RejectedLine(contract.emaid, error_messages(exc), retryable=False)
        if published is None:
            return UNCHANGED
        publication.record(self._plan.caller, contract, published)
        if published.moved_from is not None:
            return MOVED
        return CREATED if published.created else UPDATED

    async def _finish_all(self, written: _Written, permits: asyncio.Semaphore) -> None:
        """Stage 3: count the outcomes of chunks that are durable, in order, and save checkpoints."""
        report, progress = self._report, self._progress
        assert report is not None, "opened in run"
        due = time.monotonic() + _CHECKPOINT_INTERVAL
        while (item := await written.get()) is not None:
            chunk, outcomes = item
            for line, pending in zip(chunk.lines, outcomes, strict=True):
                outcome = pending if isinstance(pending, RejectedLine) else await pending
                if isinstance(outcome, RejectedLine):
                    report.add(line.file, line.number, outcome)
                    progress.counts[REFUSED] += 1
                else:
                    progress.counts[outcome] += 1
            progress.lines_done += len(chunk.lines)
            progress.position = chunk.end.position
            self._reached = chunk.end
            permits.release()
            self._plan.on_progress(progress)
            if time.monotonic() >= due:
                self._save()
                due = time.monotonic() + _CHECKPOINT_INTERVAL

    def _save(self) -> None:
        """Save a checkpoint. The report is made durable before the checkpoint says that its lines are done."""
        assert self._report is not None, "opened in run"
        if self._plan.checkpoint is None or self._reached is None or self._reached == self._saved:
            return
        length = self._report.sync()
        checkpoint = Checkpoint(self._reached, dict(self._progress.counts), self._report.name, length)
        checkpoint.save(self._plan.checkpoint, self._key)
        self._saved = self._reached


def _root_cause(failures: BaseExceptionGroup[Any]) -> BaseException:
    """Choose one of several concurrent errors: a defect first, then the first deliberate error."""
    inner = [_root_cause(exc) if isinstance(exc, BaseExceptionGroup) else exc for exc in failures.exceptions]
    return next((exc for exc in inner if not isinstance(exc, ConfigurationError | Unavailable)), inner[0])
