"""The process of an import that reads, hands out, writes and reports.

    reader (a thread) → worker processes, each with two chunks → here, in the order of the input → store → report

Chunks are taken up again in the order of the input, and a contract waits for the one before it that has its EMAID or
its vehicle; everything else is written at the same time, and the store shares its commits. Each contract is a
transaction by itself, the very one of PUT: claim of the EMAID, then the vehicle. So an import takes no locks that a
PUT would not take, and cannot deadlock with servers at work.

Whatever ends it, a second run is right: a chunk counts as done when it is durable, the checkpoint is written after
that, and what was stored beyond the checkpoint is found there just as it is and left alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, TypeVar

import orjson
import structlog

from ccp.errors import CCPError, ConfigurationError, LimitExceeded, MismatchError, Unavailable
from ccp.schemas.error_messages import error_messages
from ccp.server.app import Services, build_services
from ccp.server.bulk import import_worker
from ccp.server.bulk.checkpoint import Checkpoint, key_of
from ccp.server.bulk.import_worker import Accepted, Channel, Done, Had, Order, Refused, Wanted, Work
from ccp.server.bulk.lines import Chunk, Mark, Source
from ccp.server.domain.parties import Caller
from ccp.server.runtime.clock import utc_now
from ccp.server.runtime.private_files import create_private, reopen_private
from ccp.server.runtime.terminal_text import printable_json_bytes
from ccp.server.settings import Settings
from ccp.server.storage.queries.bulk import import_contract

_log = structlog.get_logger("ccp.server.bulk")

T = TypeVar("T")

_AHEAD: Final = 2  # Chunks that a worker has: one that it works on, and the next.
_WRITES: Final = 256  # Contracts that are being written at the same time.
_CHECKPOINT_SECONDS: Final = 1.0
_IMPORT: Final = "<import>"  # Its queue for a responder's rate, beside those of parties.
_EVIDENCE_SECONDS: Final = 30.0  # Nobody waits at the other end of the line, so a long CRL may take its time.
_RETRIES: Final = 6  # … at a database that cannot write now: half a second, one, two, …
_WORKER_ENDED: Final = (
    "A worker process of the import has ended; the log says why, or the system's log where it was killed."
)
_SENTENCES: Final = 20  # Different warnings that are counted; more are counted together.

CREATED, UPDATED, MOVED, UNCHANGED, REFUSED = "created", "updated", "moved", "unchanged", "refused"
OUTCOMES: Final = (CREATED, UPDATED, MOVED, UNCHANGED, REFUSED)


@dataclass(slots=True)
class State:
    """How far an import is. counts: lines by what became of them, over all its runs. warnings: of this run, by text.

    now: lines that this run has done. position: as Mark has it.
    """

    counts: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    now: int = 0
    position: int = 0
    interrupted: bool = False
    resumed_behind: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to import and how. workers: processes. checkpoint, refused: files, or none."""

    source: Source
    caller: Caller
    workers: int
    checkpoint: Path | None
    refused: Path | None
    told: Callable[[State], None] = lambda state: None


async def run(config: Settings, plan: Plan) -> State:
    """Import everything. Ends early, in order, at SIGINT and SIGTERM.

    Raises ConfigurationError (what cannot be read, another input than the checkpoint's), Unavailable (the database
    cannot write). The checkpoint then says how far it came.
    """
    built = build_services(config)
    await built.open()
    try:
        return await _Import(config, plan, built).run()
    finally:
        await built.close()


class _Import:
    def __init__(self, config: Settings, plan: Plan, built: Services) -> None:
        self._config = config
        self._plan = plan
        self._built = built
        self._state = State()
        self._stop = asyncio.Event()
        self._room = asyncio.Semaphore(_WRITES)
        self._under_way: dict[str, asyncio.Task[str | Refused]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last_at = utc_now()
        self._unreadable: ConfigurationError | None = None
        self._reached: Mark | None = None
        self._saved: Mark | None = None
        self._report: _Report | None = None
        self._key = b""

    async def run(self) -> State:
        plan, state = self._plan, self._state
        self._key = await key_of(self._built.store)
        before = Checkpoint.load(plan.checkpoint, self._key) if plan.checkpoint else None
        if before is not None:
            state.counts.update(before.counts)
            state.resumed_behind = before.mark.lines
        self._report = _Report(plan.refused, before)
        try:
            await self._all(before)
            if not state.interrupted and plan.checkpoint is not None:
                self._report.sync()
                plan.checkpoint.unlink(missing_ok=True)
                self._reached = None
        finally:
            self._save()
            self._report.close()
        return state

    async def _all(self, before: Checkpoint | None) -> None:
        # As many chunks as may be anywhere between the reader and the database: this bounds the memory.
        tokens = asyncio.Semaphore(self._plan.workers * _AHEAD + 4)
        checked: asyncio.Queue[tuple[Chunk, asyncio.Task[Done]] | None] = asyncio.Queue()
        written: asyncio.Queue[tuple[Chunk, list[Refused | asyncio.Task[str | Refused]]] | None] = asyncio.Queue()
        plan = self._plan
        reader = _Reader(plan.source, self._config.max_body, before, plan.checkpoint, asyncio.get_running_loop())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        try:
            async with _Crew(self._built) as crew, asyncio.TaskGroup() as group:
                await crew.start(self._plan.workers, Order(self._config.model_dump(), self._plan.caller))
                group.create_task(self._hand_out(reader, crew, tokens, checked))
                group.create_task(self._write_all(checked, written))
                group.create_task(self._finish_all(written, tokens))
            if self._unreadable is not None:
                raise self._unreadable
        except BaseExceptionGroup as failures:
            raise _gravest(failures) from None
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            reader.end()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _interrupt(self) -> None:
        """Nothing more is read; what is under way is brought to its end. The next signal does as it always does."""
        self._state.interrupted = True
        self._stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    async def _hand_out(
        self,
        reader: _Reader,
        crew: _Crew,
        tokens: asyncio.Semaphore,
        checked: asyncio.Queue[tuple[Chunk, asyncio.Task[Done]] | None],
    ) -> None:
        stopped = asyncio.create_task(self._stop.wait())
        try:
            while True:
                await tokens.acquire()
                following = asyncio.create_task(reader.next())
                await asyncio.wait({following, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    break
                try:
                    chunk = following.result()
                except ConfigurationError as exc:  # What was read before is good all the same.
                    self._unreadable = exc
                    break
                if chunk is None or self._stop.is_set():
                    break
                at = self._last_at = max(utc_now(), self._last_at + timedelta(milliseconds=1))
                checked.put_nowait((chunk, self._spawn(crew.check(chunk, at))))
        finally:
            stopped.cancel()
        checked.put_nowait(None)

    async def _write_all(
        self,
        checked: asyncio.Queue[tuple[Chunk, asyncio.Task[Done]] | None],
        written: asyncio.Queue[tuple[Chunk, list[Refused | asyncio.Task[str | Refused]]] | None],
    ) -> None:
        while (item := await checked.get()) is not None:
            chunk, checking = item
            found = (await checking).outcomes
            written.put_nowait((chunk, [each if isinstance(each, Refused) else self._begin(each) for each in found]))
        written.put_nowait(None)

    def _begin(self, accepted: Accepted) -> asyncio.Task[str | Refused]:
        """Write a contract, after those before it that have the same EMAID or vehicle."""
        names = (f"emaid {accepted.contract.emaid}", f"pcid {accepted.contract.pcid}")
        before = {task for name in names if (task := self._under_way.get(name)) is not None}
        task = self._spawn(self._write(accepted, before))
        for name in names:
            self._under_way[name] = task
        task.add_done_callback(lambda done: self._ended(names, done))
        for sentence in accepted.warnings:
            known = sentence in self._state.warnings or len(self._state.warnings) < _SENTENCES
            self._state.warnings[sentence if known else "Other warnings."] += 1
        return task

    def _spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._landed)
        return task

    def _landed(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Seen: the first of several errors ends the import, the others say nothing more.

    def _ended(self, names: Iterable[str], task: asyncio.Task[str | Refused]) -> None:
        for name in names:
            if self._under_way.get(name) is task:
                del self._under_way[name]

    async def _write(self, accepted: Accepted, before: set[asyncio.Task[str | Refused]]) -> str | Refused:
        if before:
            await asyncio.wait(before)
        contract, publication = accepted.contract, self._built.pool.publication
        change = publication.transaction(self._plan.caller, contract, default=accepted.default)
        async with self._room:
            for attempt in range(_RETRIES):
                try:
                    done = await self._built.store.write(import_contract(contract, change))
                    break
                except Unavailable:
                    if attempt == _RETRIES - 1:
                        raise
                    await asyncio.sleep(0.5 * 2**attempt)
                except (LimitExceeded, MismatchError) as exc:  # What PUT answers with 400 at this point.
                    return Refused(contract.emaid, error_messages(exc), again=False)
        if done is None:
            return UNCHANGED
        publication.record(self._plan.caller, contract, done)
        if done.moved_from is not None:
            return MOVED
        return CREATED if done.created else UPDATED

    async def _finish_all(
        self,
        written: asyncio.Queue[tuple[Chunk, list[Refused | asyncio.Task[str | Refused]]] | None],
        tokens: asyncio.Semaphore,
    ) -> None:
        """Take note of chunks that are durable, in order."""
        report, state = self._report, self._state
        assert report is not None, "made before"
        due = time.monotonic() + _CHECKPOINT_SECONDS
        while (item := await written.get()) is not None:
            chunk, outcomes = item
            for line, outcome in zip(chunk.lines, outcomes, strict=True):
                done = outcome if isinstance(outcome, Refused) else await outcome
                if isinstance(done, Refused):
                    report.add(line.file, line.number, done)
                    state.counts[REFUSED] += 1
                else:
                    state.counts[done] += 1
            state.now += len(chunk.lines)
            state.position = chunk.after.position
            self._reached = chunk.after
            tokens.release()
            self._plan.told(state)
            if time.monotonic() >= due:
                self._save()
                due = time.monotonic() + _CHECKPOINT_SECONDS

    def _save(self) -> None:
        """What is noted as refused is on disk before the checkpoint says that its lines are done."""
        assert self._report is not None, "made before"
        if self._plan.checkpoint is None or self._reached is None or self._reached == self._saved:
            return
        length = self._report.sync()
        done = Checkpoint(self._reached, dict(self._state.counts), self._report.name, length)
        done.save(self._plan.checkpoint, self._key)
        self._saved = self._reached


class _Report:
    """The file of refused lines, or none. A run that goes on begins where the checkpoint says that it ended.

    The file names contracts: its mode is 0600, and it is written through no link. Raises ConfigurationError, OSError.
    """

    def __init__(self, path: Path | None, before: Checkpoint | None) -> None:
        self._file: IO[bytes] | None = None
        self.name = None if path is None else str(path.absolute())
        if path is None:
            return
        begin = before.report_bytes if before is not None and before.report == self.name else 0
        try:
            self._file = reopen_private(path)
        except FileNotFoundError:
            self._file = create_private(path)
            return
        os.fchmod(self._file.fileno(), 0o600)
        self._file.truncate(min(begin, os.fstat(self._file.fileno()).st_size))
        self._file.seek(0, os.SEEK_END)

    def add(self, file: str, line: int, refused: Refused) -> None:
        if self._file is not None:
            members: dict[str, Any] = {"file": file, "line": line}
            if refused.emaid is not None:
                members["emaid"] = refused.emaid
            members["errorMessages"] = list(refused.messages)
            if refused.again:
                members["again"] = True
            self._file.write(printable_json_bytes(orjson.dumps(members, option=orjson.OPT_APPEND_NEWLINE)))

    def sync(self) -> int:
        """Bring it to the disk. Returns its length in octets."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _Reader:
    """A thread that reads ahead by a few chunks. Standard input may keep it waiting for ever, so it is a daemon."""

    def __init__(
        self,
        source: Source,
        longest: int,
        before: Checkpoint | None,
        checkpoint: Path | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._source = source
        self._longest = longest
        self._before = before
        self._checkpoint = checkpoint
        self._loop = loop
        self._queue: asyncio.Queue[Chunk | BaseException | None] = asyncio.Queue()
        self._space = threading.Semaphore(4)
        self._ended = False
        threading.Thread(target=self._read, name="import-reader", daemon=True).start()

    async def next(self) -> Chunk | None:
        """None at the end. Raises ConfigurationError."""
        item = await self._queue.get()
        self._space.release()
        if isinstance(item, BaseException):
            raise item
        return item

    def end(self) -> None:
        self._ended = True
        self._space.release()

    def _read(self) -> None:
        try:
            for chunk in self._remaining():
                self._space.acquire()
                if self._ended:
                    return
                self._put(chunk)
            self._put(None)
        except BaseException as exc:
            self._put(exc)

    def _put(self, item: Chunk | BaseException | None) -> None:
        if not self._ended:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    def _remaining(self) -> Iterable[Chunk]:
        """What is behind the checkpoint. Chunks end at the same places whenever the same input is read."""
        skipping = self._before.mark if self._before else None
        skipped = 0
        for chunk in self._source.chunks(self._longest):
            if skipping is None:
                yield chunk
                continue
            skipped += len(chunk.lines)
            if chunk.after.lines >= skipping.lines:
                if chunk.after != skipping or self._before is None or sum(self._before.counts.values()) != skipped:
                    break
                skipping = None
        if skipping is not None:
            raise ConfigurationError(
                f"The checkpoint is of another input than {self._source.name}: its first {skipping.lines} lines are "
                f"not those that were imported. Delete {self._checkpoint} to start from the beginning."
            )


class _Crew:
    """The worker processes, as a context manager. Each has at most two chunks at a time.

    What ends one of them, or the exchange with it, ends the block: it is cancelled, and the error is raised from there,
    in an exception group. So no chunk waits for a result that does not come.
    """

    def __init__(self, built: Services) -> None:
        self._built = built
        self._processes: list[Any] = []
        self._channels: list[Channel] = []
        self._free: asyncio.Queue[Channel] = asyncio.Queue()
        self._waiting: dict[int, asyncio.Future[Done]] = {}
        self._exchanges = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = 0

    async def __aenter__(self) -> _Crew:
        await self._exchanges.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        try:
            await self._exchanges.__aexit__(kind, exc, traceback)
        finally:
            await self._end()

    async def start(self, count: int, order: Order) -> None:
        for _ in range(count):
            process, end = import_worker.start(order)
            self._processes.append(process)
            channel = await Channel.over(end)
            self._channels.append(channel)
            self._spawn(self._listen(channel))
            for _ in range(_AHEAD):
                self._free.put_nowait(channel)

    async def check(self, chunk: Chunk, at: datetime) -> Done:
        """Have a chunk checked by the worker that is free next. Raises Unavailable when a worker has ended."""
        if not chunk.lines:
            return Done(-1, ())
        channel = await self._free.get()
        self._numbers += 1
        number = self._numbers
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            await _send(channel, Work(number, at, tuple(line.octets for line in chunk.lines)))
            return await answer
        finally:
            del self._waiting[number]
            self._free.put_nowait(channel)

    async def _end(self) -> None:
        for channel in self._channels:
            channel.close()
        for process in self._processes:
            await asyncio.to_thread(process.join, 5)
            if process.is_alive():
                process.kill()
                await asyncio.to_thread(process.join, 5)  # One that hangs in the kernel ends when it can.

    def _spawn(self, exchange: Coroutine[Any, Any, None]) -> None:
        task = self._exchanges.create_task(_guarded(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen(self, channel: Channel) -> None:
        """Take what a worker sends. Raises Unavailable when it has ended: only `_end` does that in order."""
        while (message := await channel.receive()) is not None:
            if isinstance(message, Done):
                self._waiting[message.number].set_result(message)
            elif isinstance(message, Wanted):
                self._spawn(self._gather(channel, message))
        raise Unavailable(_WORKER_ENDED)

    async def _gather(self, channel: Channel, wanted: Wanted) -> None:
        """Fetch evidence for a worker; who asks for the same at the same time shares it."""
        failures = await self._built.revocation.fetch_missing(
            import_worker.pairs_of(wanted), wanted.at, timeout=_EVIDENCE_SECONDS, caller=_IMPORT, max_asked=sys.maxsize
        )
        # Causes stay here: what they hold may not travel.
        await _send(channel, Had(wanted.number, {key: type(each)(*each.messages) for key, each in failures.items()}))


async def _send(channel: Channel, message: object) -> None:
    """Raises Unavailable when the worker has ended."""
    try:
        await channel.send(message)
    except ConnectionError as exc:
        raise Unavailable(_WORKER_ENDED) from exc


async def _guarded(exchange: Coroutine[Any, Any, None]) -> None:
    """Raises Unavailable for a defect too, whose traceback is in the log."""
    try:
        await exchange
    except CCPError:
        raise
    except Exception as exc:
        _log.exception("import worker exchange failed")
        raise Unavailable("The exchange with a worker process of the import failed; the log says why.") from exc


def _gravest(failures: BaseExceptionGroup[Any]) -> BaseException:
    """One of several errors at the same time: what is no deliberate error comes first."""
    each = list(failures.exceptions)
    inner = [_gravest(one) if isinstance(one, BaseExceptionGroup) else one for one in each]
    return next((one for one in inner if not isinstance(one, ConfigurationError | Unavailable)), inner[0])
