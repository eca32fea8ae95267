"""The worker processes of an import, as the import sees them: it hands out batches and collects results."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from datetime import datetime
from types import TracebackType
from typing import Any, Final

import structlog

from ccp.errors import CCPError, Unavailable
from ccp.server.app import Services
from ccp.server.bulk import import_worker
from ccp.server.bulk.lines import Chunk
from ccp.server.bulk.messages import Batch, BatchResult, Channel, EvidenceRequest, EvidenceResult, WorkerConfig

_log = structlog.get_logger("ccp.server.bulk")

BATCHES_PER_WORKER: Final = 2  # The one that a worker checks, and the next.
_IMPORT: Final = "<import>"  # The import's name in queues for responders, beside the client ids of parties.
_EVIDENCE_TIMEOUT: Final = 30.0  # Seconds. No caller waits for the result, so there is time for a large CRL.
_WORKER_ENDED: Final = (
    "A worker process of the import has ended; the log says why, or the system's log where it was killed."
)


class WorkerPool:
    """The worker processes, as a context manager. Each has at most `BATCHES_PER_WORKER` batches at a time.

    If a worker ends, or the exchange with it fails, the context is cancelled and the error is raised from its end, in
    an exception group. So no batch waits for a result that does not come.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._processes: list[Any] = []
        self._channels: list[Channel] = []
        self._free: asyncio.Queue[Channel] = asyncio.Queue()
        self._waiting: dict[int, asyncio.Future[BatchResult]] = {}
        self._exchanges = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._batches = 0

    async def __aenter__(self) -> WorkerPool:
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
            await self._stop()

    async def start(self, count: int, config: WorkerConfig) -> None:
        """Start worker processes."""
        for _ in range(count):
            process, end = import_worker.start(config)
            self._processes.append(process)
            channel = await Channel.over(end)
            self._channels.append(channel)
            self._spawn(self._listen(channel))
            for _ in range(BATCHES_PER_WORKER):
                self._free.put_nowait(channel)

    async def check(self, chunk: Chunk, now: datetime) -> BatchResult:
        """Have the next free worker check a chunk. Raises Unavailable if a worker has ended."""
        if not chunk.lines:
            return BatchResult(-1, ())
        channel = await self._free.get()
        self._batches += 1
        number = self._batches
        result: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
        self._waiting[number] = result
        try:
            await _send(channel, Batch(number, now, tuple(line.data for line in chunk.lines)))
            return await result
        finally:
            del self._waiting[number]
            self._free.put_nowait(channel)

    async def _stop(self) -> None:
        for channel in self._channels:
            channel.close()
        for process in self._processes:
            await asyncio.to_thread(process.join, 5)
            if process.is_alive():
                process.kill()
                await asyncio.to_thread(process.join, 5)  # A process that hangs in a system call ends later.

    def _spawn(self, exchange: Coroutine[Any, Any, None]) -> None:
        task = self._exchanges.create_task(_guarded(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen(self, channel: Channel) -> None:
        """Receive a worker's messages. Raises Unavailable when it has ended, which only `_stop` causes in order."""
        while (message := await channel.receive()) is not None:
            if isinstance(message, BatchResult):
                self._waiting[message.number].set_result(message)
            elif isinstance(message, EvidenceRequest):
                self._spawn(self._fetch_evidence(channel, message))
        raise Unavailable(_WORKER_ENDED)

    async def _fetch_evidence(self, channel: Channel, request: EvidenceRequest) -> None:
        """Fetch revocation status for a worker. Concurrent requests for the same certificate share one query."""
        failures = await self._services.revocation.fetch_missing(
            import_worker.pairs_of(request),
            request.now,
            timeout=_EVIDENCE_TIMEOUT,
            caller=_IMPORT,
            max_asked=sys.maxsize,
        )
        # Errors are built anew, without __cause__: it may not be picklable.
        result = EvidenceResult(request.number, {key: type(exc)(*exc.messages) for key, exc in failures.items()})
        await _send(channel, result)


async def _send(channel: Channel, message: object) -> None:
    """Raises Unavailable if the worker has ended."""
    try:
        await channel.send(message)
    except ConnectionError as exc:
        raise Unavailable(_WORKER_ENDED) from exc


async def _guarded(exchange: Coroutine[Any, Any, None]) -> None:
    """Await an exchange. A defect is logged with its traceback and raised as Unavailable."""
    try:
        await exchange
    except CCPError:
        raise
    except Exception as exc:
        _log.exception("import worker exchange failed")
        raise Unavailable("The exchange with a worker process of the import failed; the log says why.") from exc
