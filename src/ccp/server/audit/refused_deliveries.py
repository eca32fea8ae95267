"""Records of refused deliveries: why a vehicle, or the OEM that fetched a contract, got nothing.

Recorded are authenticated requests of the operations in `OPERATIONS`. Requests without a valid token are in the audit
trail (`ccp.server.audit.refusals`), those beyond a rate limit in the metrics and counters.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ccp import verify
from ccp.errors import CCPError, FieldError
from ccp.errors.codes import ErrorCode
from ccp.exi.base64_text import message_bytes
from ccp.ids import EMAID, PCID
from ccp.server.audit.buffered_writer import BufferedWriter
from ccp.server.domain.authorization import OCPPOperation, Operation
from ccp.server.runtime.background import BackgroundTasks, PeriodicTask
from ccp.server.storage import Store
from ccp.server.storage.queries import refusals as queries
from ccp.server.storage.queries.refusals import Refusal

OPERATIONS: Final = frozenset(
    operation.value
    for operation in (
        Operation.DELIVER,
        OCPPOperation.GET_15118_EV_CERTIFICATE,
        Operation.GET_SIGNED_CONTRACT_DATA,
        Operation.GET_CONTRACT_DATA_BY_PCID,
    )
)
_INTERVAL: Final = 1.0  # Seconds.
_PURGE_INTERVAL: Final = 600.0
_BATCH: Final = 50  # Rows in one transaction.
_MAX_QUEUED: Final = 2_000
_WINDOW: Final = 60.0  # Seconds.
_MAX_OF_CALLER: Final = 200  # In a window, in one worker.
_TRIM_AFTER: Final = 100  # Rows of a caller.
_MAX_REASON: Final = 1_000  # Characters.
_MAX_REQUEST: Final = 16_384  # Bytes. The longest valid request has some 8,000.


@dataclass(slots=True)
class RefusedRequest:
    """The facts of a refused request, as the middleware hands them over.

    message: the vehicle's request in Base64, None if it was not read, and for an OEM's request. failure: None for a
    refusal of the HTTP layer.
    """

    trace_id: str
    client_id: str
    operation: str
    dialect: str
    status: int
    code: ErrorCode
    edition: str | None
    pcid: PCID | None
    emaid: EMAID | None
    message: str | None
    failure: CCPError | None


class RefusedDeliveries:
    """Queues records in memory, and writes them in batches after the responses.

    Requests never wait. A caller gets at most 200 records a minute from each worker, and all callers 2,000 in the
    queue; while the worker is overloaded nothing is recorded. `dropped` is called with the reason for each record that
    is left out. A killed process loses what is queued.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], datetime],
        checked_now: Callable[[], Awaitable[datetime]],
        *,
        retention: timedelta,
        keep_requests: bool,
        dropped: Callable[[str], None] = lambda reason: None,
        overloaded: Callable[[], bool] = lambda: False,
        interval: float = _INTERVAL,
    ) -> None:
        """retention: zero records nothing and removes what is there. keep_requests: keep the vehicle's request too."""
        self._store = store
        self._clock = clock
        self._checked_now = checked_now
        self._retention = retention
        self._keep_requests = keep_requests
        self._dropped = dropped
        self._overloaded = overloaded
        self._window_ends = 0.0
        self._of_caller: Counter[str] = Counter()
        self._written: Counter[str] = Counter()
        self._writer = BufferedWriter[Refusal](
            "refusal",
            self._write,
            task="refusals",
            interval=interval,
            max_rows=_MAX_QUEUED,
            batch=_BATCH,
            done=lambda refusal: self._written.update((refusal.client_id,)),
            rejected=lambda refusal: dropped("rejected"),
        )

    def record(self, request: RefusedRequest) -> None:
        """Queue a record without waiting, if it is of a delivery."""
        if request.operation not in OPERATIONS or request.code is ErrorCode.RATE_LIMIT_EXCEEDED or not self._retention:
            return
        if self._overloaded():
            self._dropped("overload")
            return
        now = time.monotonic()
        if now >= self._window_ends:
            self._window_ends = now + _WINDOW
            self._of_caller.clear()
        if self._of_caller[request.client_id] >= _MAX_OF_CALLER:
            self._dropped("caller")
        # Made at once: the request's body and its error, which refers to frames, are not kept in the queue.
        elif self._writer.is_full or not self._writer.add(self._refusal(self._clock(), request)):
            self._dropped("queue")
        else:
            self._of_caller[request.client_id] += 1

    def open(self, background: BackgroundTasks) -> None:
        """Start the tasks that write the records and remove old ones."""
        self._writer.open(background)
        background.add(PeriodicTask("refusals_purge", self.purge, _PURGE_INTERVAL))

    async def close(self) -> None:
        """Stop writing periodically, and write what is queued."""
        await self._writer.close()

    async def flush(self) -> None:
        """Write the queued records. Raises Unavailable; what was not written stays queued."""
        await self._writer.flush()

    async def _write(self, refusals: Sequence[Refusal]) -> None:
        """Trim the callers that have many records by now, and store records."""
        for client_id in [name for name, number in self._written.items() if number >= _TRIM_AFTER]:
            await self._store.write(queries.trim(client_id))
            del self._written[client_id]
        await self._store.write(queries.record(refusals))

    async def purge(self) -> None:
        """Remove records that are older than the retention, and what exceeds the total. Raises Unavailable."""
        if not self._retention:
            await self._store.write(queries.remove_all())
            return
        before = await self._checked_now() - self._retention
        while await self._store.write(queries.remove_before(before)) >= queries.PORTION:
            pass
        found = await self._store.read(queries.callers())
        share = min(queries.MAX_ROWS_OF_CALLER, max(queries.MAX_ROWS // max(len(found), 1), 1))
        for client_id, number in found:
            if number > share:
                await self._store.write(queries.trim(client_id, share))

    def _refusal(self, at: datetime, request: RefusedRequest) -> Refusal:
        failure = request.failure
        message = None if request.message is None else _bytes_of(request.message)
        kept = None
        named: tuple[EMAID, ...] = ()
        # An erasure has to find every id, so a request is kept only if it can be read.
        if self._keep_requests and message is not None and len(message) <= _MAX_REQUEST and request.pcid is not None:
            try:
                named = verify.read_request(message, None).prioritized_emaids
                kept = message
            except CCPError:
                pass
        return Refusal(
            id=request.trace_id,
            at=at,
            client_id=request.client_id,
            operation=request.operation,
            dialect=request.dialect,
            status=request.status,
            edition=request.edition,
            pcid=request.pcid,
            emaid=request.emaid,
            digest=None if message is None else hashlib.sha256(message).hexdigest(),
            code=request.code.value,
            check=None if failure is None else failure.check,
            reason=_storable(request.code.meaning if failure is None else str(failure)),
            request=kept,
            concerned=() if failure is None else tuple(_emaids(failure.concerned)),
            named=named,
        )


def _bytes_of(text: str) -> bytes:
    """The message in a Base64 text; the text itself if it is no Base64."""
    try:
        return message_bytes(text)
    except CCPError:
        return text.encode("utf-8", "surrogatepass")


def _storable(text: str) -> str:
    """A text that every database takes: no U+0000, no half of a surrogate pair."""
    return text[:_MAX_REASON].replace("\0", "?").encode("utf-8", "replace").decode("utf-8")


def _emaids(texts: tuple[str, ...]) -> Iterator[EMAID]:
    for text in texts:
        try:
            yield EMAID.parse(text)
        except FieldError:
            continue
