"""Stream of the audit trail to a receiver outside: in order, at least once, by one process at a time.

The position of each lane is in the database. It advances only after the receiver has the rows, so a crash repeats the
last batch and loses nothing. One process of all workers and machines has a lease and sends; the others look from time
to time whether it is free. Rows are read from the trail when they are sent; nothing waits in memory, and no request
waits for the stream.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import structlog

from ccp.errors import Unavailable
from ccp.server.audit.stream_receivers import SEND_TIMEOUT, Receiver, StreamError
from ccp.server.runtime.background import PeriodicTask
from ccp.server.runtime.clock import Clock
from ccp.server.storage import Store
from ccp.server.storage.queries import audit_stream
from ccp.server.storage.queries.audit import AuditRow
from ccp.server.storage.queries.audit_stream import LeaseLost

_log = structlog.get_logger("ccp.server.audit.stream")

LEASE: Final = 20.0
"""Seconds. The longest time until another process takes over from one that was killed."""
INTERVAL: Final = 1.0
_PER_LANE: Final = 50  # Rows; of sixteen lanes some 800 rows, less than a megabyte.
_MAX_DELAY: Final = 5.0  # Between two attempts, so that the lease is renewed in between.


class StreamMetrics(Protocol):
    """Records the progress of the stream."""

    def audit_streamed(self, rows: int, *, failed: bool) -> None:
        """Count rows that the receiver has, or a failed attempt."""

    def audit_stream_behind(self, rows: int, seconds: float) -> None:
        """Record the rows that the receiver does not have yet, and the age of the oldest."""


class AuditStream:
    """Streams the trail of one database to one receiver."""

    def __init__(
        self,
        store: Store,
        receiver: Receiver,
        kind: str,
        clock: Clock,
        metrics: StreamMetrics,
        *,
        lease: float = LEASE,
        interval: float = INTERVAL,
        per_lane: int = _PER_LANE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """kind: of the receiver; names the position. lease, interval: seconds. per_lane: maximum number of rows of one
        lane in a batch.
        """
        self._store = store
        self._receiver = receiver
        self._kind = kind
        self._clock = clock
        self._metrics = metrics
        self._lease = lease
        self._interval = interval
        self._per_lane = per_lane
        self._monotonic = monotonic
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._held_until = 0.0
        self._failures = 0
        self._interrupted_at = 0.0

    def task(self) -> PeriodicTask:
        """The background task. Not interruptible: a cancelled send might reach the receiver unnoticed."""
        return PeriodicTask("audit_stream", self._round, self._delay, first_delay=0.0, interruptible=False)

    async def close(self) -> None:
        """Give the lease back, so that another process continues at once."""
        held = self._holds()
        await self._let_go()
        if held:
            with contextlib.suppress(Unavailable):  # Then it ends by itself.
                await self._store.write(audit_stream.release(self._kind, self._holder))

    def _delay(self) -> float:
        if not self._holds():
            return max(self._interval, self._lease / 4)
        return min(self._interval * 2.0 ** min(self._failures, 16), max(_MAX_DELAY, self._interval))

    def _holds(self) -> bool:
        return self._monotonic() < self._held_until

    async def _round(self) -> bool:
        """Send one batch. Returns whether there is more to send now."""
        if not await self._hold_lease():
            return False
        found = await self._store.read(audit_stream.pending(self._kind, self._per_lane))
        if not found.rows:
            self._metrics.audit_stream_behind(0, 0.0)
            return False
        age = (await self._now() - found.rows[0].when).total_seconds()
        self._metrics.audit_stream_behind(found.count, max(0.0, age))
        if self._monotonic() > self._held_until - min(SEND_TIMEOUT + 1, self._lease / 2):
            return True  # This process was suspended since it renewed the lease: renew it first.
        try:
            await self._receiver.send(found.rows)
        except StreamError as exc:
            self._interrupted(exc)
            return False
        await self._confirmed(found.rows)
        return found.count > len(found.rows)

    async def _confirmed(self, rows: Sequence[AuditRow]) -> None:
        self._metrics.audit_streamed(len(rows), failed=False)
        try:
            await self._store.write(audit_stream.advance(self._kind, self._holder, rows))
        except LeaseLost:
            await self._let_go()  # The other process sends these rows again.
            return
        if self._failures:
            seconds = round(self._monotonic() - self._interrupted_at, 1)
            _log.info("audit stream resumed", kind=self._kind, failures=self._failures, seconds=seconds)
            self._failures = 0

    def _interrupted(self, exc: StreamError) -> None:
        self._metrics.audit_streamed(0, failed=True)
        self._failures += 1
        if self._failures == 1:
            self._interrupted_at = self._monotonic()
            _log.error("audit stream interrupted", kind=self._kind, reason=str(exc))

    async def _hold_lease(self) -> bool:
        """Take the lease, or renew it when half of it is over. Returns whether this process has it."""
        before = self._monotonic()
        if before < self._held_until - self._lease / 2:
            return True
        now = await self._now()
        until = now + timedelta(seconds=self._lease)
        if (self._holds() or await self._store.read(audit_stream.is_free(self._kind, now))) and await self._store.write(
            audit_stream.claim(self._kind, self._holder, now, until)
        ):
            self._held_until = before + self._lease
            return True
        await self._let_go()
        return False

    async def _let_go(self) -> None:
        self._held_until, self._failures = 0.0, 0
        await self._receiver.close()

    async def _now(self) -> datetime:
        """The database server's clock, which all machines share; of a file that of this machine."""
        return await self._store.time() or self._clock().astimezone(UTC)
