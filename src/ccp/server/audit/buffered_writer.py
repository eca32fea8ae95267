"""Rows that wait in memory and are written in batches, off the request path.

    writer = BufferedWriter("refusal", lambda rows: store.write(queries.record(rows)), task="refusals", interval=1.0)
    writer.open(background)
    writer.add(row)                 # False if the buffer is full
    await writer.close()

While the database does not answer, rows wait, up to a bound. A row that the database refuses for ever is left out and
logged; the other rows of its batch are written. A killed process loses what waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

import structlog

from ccp.errors import CCPError, Unavailable
from ccp.server.runtime.background import BackgroundTasks, PeriodicTask, Supervised

_log = structlog.get_logger("ccp.server.audit.buffered_writer")

_CLOSE_TIMEOUT: Final = 10.0  # Seconds for what waits at shutdown; service managers kill after some twenty.

R = TypeVar("R")


def _ignore(row: object) -> None:
    """Take no notice of a row."""


class BufferedWriter(Generic[R]):
    """A bounded buffer of rows, and the task that empties it. Belongs to one event loop."""

    def __init__(
        self,
        table: str,
        write: Callable[[Sequence[R]], Awaitable[object]],
        *,
        task: str,
        interval: float,
        max_rows: int,
        batch: int,
        collect: Callable[[], None] = lambda: None,
        merged: Callable[[R, R], R] = lambda before, row: row,
        done: Callable[[R], None] = _ignore,
        rejected: Callable[[R], None] = _ignore,
    ) -> None:
        """table: in log events. write: stores rows in one transaction, or none of them. task: name of the task.

        interval: seconds between two writes. batch: rows of one transaction. collect: called before each write; may add
        rows. merged: the row for two of the same key. done, rejected: called for each row that was written, and for
        each that the database refuses.
        """
        self._table: Final = table
        self._write: Final = write
        self._task_name: Final = task
        self._interval: Final = interval
        self._max_rows: Final = max_rows
        self._batch: Final = batch
        self._collect: Final = collect
        self._merged: Final = merged
        self._done: Final = done
        self._rejected: Final = rejected
        self._rows: dict[Hashable, R] = {}
        self._writing: list[R] = []
        self._added = 0
        self._rejections = 0
        self._task: Supervised | None = None

    @property
    def queued(self) -> int:
        """The number of rows that are not written yet."""
        return len(self._rows) + len(self._writing)

    @property
    def is_full(self) -> bool:
        """Whether `add` would refuse a row."""
        return self.queued >= self._max_rows

    def add(self, row: R) -> bool:
        """Queue a row without waiting. Returns False if the buffer is full."""
        self._added += 1
        return self.merge(self._added, row)

    def merge(self, key: Hashable, row: R) -> bool:
        """Queue a row, or merge it with the one that waits under the same key. Returns False if the buffer is full."""
        if key in self._rows:
            self._rows[key] = self._merged(self._rows[key], row)
        elif self.is_full:
            return False
        else:
            self._rows[key] = row
        return True

    def open(self, background: BackgroundTasks) -> None:
        """Start the task that writes the rows."""
        # Not interruptible: a cancelled write might commit without this process knowing.
        task = PeriodicTask(self._task_name, self.flush, self._interval, max_retry_delay=5.0, interruptible=False)
        self._task = background.add(task)

    async def close(self) -> None:
        """Stop the task, and write what waits. Rows that cannot be written in time are lost, and logged."""
        if self._task is not None:
            await self._task.stop()
            self._task = None
        reason = ""
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self.flush()
                await self.flush()  # What `collect` had no room for.
        except CCPError as exc:
            reason = str(exc)
        except TimeoutError:
            reason = f"The database takes longer than {_CLOSE_TIMEOUT:g} seconds."
        if reason:
            _log.error("rows lost at exit", table=self._table, rows=self.queued, reason=reason)

    async def flush(self) -> None:
        """Write what waits. Raises Unavailable; what was not written waits on."""
        self._collect()
        while self.queued:
            if not self._writing:
                keys = [key for key, _ in zip(self._rows, range(self._batch), strict=False)]
                self._writing = [self._rows.pop(key) for key in keys]
            try:
                await self._write(self._writing)
            except Unavailable:
                raise
            except Exception as exc:
                await self._write_singly(exc)
            else:
                for row in self._writing:
                    self._done(row)
                self._writing = []

    async def _write_singly(self, problem: Exception) -> None:
        """Write the rows of a batch that the database refuses, each alone. Raises Unavailable."""
        alone = len(self._writing) == 1
        while self._writing:
            row = self._writing[0]
            try:
                if alone:
                    raise problem
                await self._write([row])
            except Unavailable:
                raise
            except Exception as exc:
                self._reject(row, exc)
            else:
                self._done(row)
            self._writing = self._writing[1:]

    def _reject(self, row: R, problem: Exception) -> None:
        self._rejections += 1
        self._rejected(row)
        if self._rejections & (self._rejections - 1) == 0:  # At doubling counts: a defect may concern every row.
            _log.error("rows rejected", table=self._table, rows=self._rejections, exc_info=problem)
