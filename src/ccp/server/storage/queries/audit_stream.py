"""Stream of the audit trail: the lease of the process that sends, and the position of each lane.

Rows of a lane become visible in the order of their numbers, because each change locks the lane's head until its
commit. So a position is one number: everything up to it was confirmed, and nothing below it appears later.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from ccp.errors import CCPError
from ccp.server.storage.engine.query import Query, long_read, retryable
from ccp.server.storage.queries.audit import COLUMNS, AuditRow
from ccp.server.storage.queries.contracts import microseconds


class LeaseLost(CCPError):
    """Another process sends the stream now."""

    outcome = "lease_lost"


@dataclass(frozen=True, slots=True)
class Pending:
    """What the receiver has not confirmed. rows: the next ones, in order. count: of all such rows in the trail."""

    rows: tuple[AuditRow, ...]
    count: int


@retryable
def claim(kind: str, holder: str, now: datetime, until: datetime) -> Query[bool]:
    """Take or renew the lease of a stream. Returns False while another process has it."""
    yield (
        "insert into audit_stream (kind, holder, lease_until) values ($1, '', 0) on conflict (kind) do nothing",
        (kind,),
    )
    rows = yield (
        "update audit_stream set holder = $2, lease_until = $4 where kind = $1 and (holder = $2 or lease_until <= $3) "
        "returning kind",
        (kind, holder, microseconds(now), microseconds(until)),
    )
    return bool(rows)


@retryable
def release(kind: str, holder: str) -> Query[None]:
    """Give the lease back, if this process has it."""
    yield "update audit_stream set lease_until = 0 where kind = $1 and holder = $2", (kind, holder)


@long_read
def is_free(kind: str, now: datetime) -> Query[bool]:
    """Whether no process has the lease."""
    rows = yield "select lease_until from audit_stream where kind = $1", (kind,)
    free: bool = not rows or rows[0][0] <= microseconds(now)
    return free


@dataclass(frozen=True, slots=True)
class StreamState:
    """How far a stream has got.

    rows: in the trail. confirmed: of these. oldest_at: microseconds since 1970 of the oldest row that waits; None
    without one. holder, lease_until: the process that has or had the lease; microseconds since 1970.
    """

    rows: int
    confirmed: int
    oldest_at: int | None
    holder: str
    lease_until: int


@long_read
def state(kind: str) -> Query[StreamState]:
    """How far a stream has got. For commands."""
    waiting = yield from pending(kind, 1)
    lengths = yield "select coalesce(sum(number), 0) from audit_head", ()
    lease = yield "select holder, lease_until from audit_stream where kind = $1", (kind,)
    holder, until = lease[0] if lease else ("", 0)
    rows = int(lengths[0][0])
    oldest = waiting.rows[0].at if waiting.rows else None
    return StreamState(rows, rows - waiting.count, oldest, holder, until)


@long_read
def pending(kind: str, per_lane: int) -> Query[Pending]:
    """The next rows for a receiver: those of each lane in the order of their numbers, lanes merged by time.

    per_lane: maximum number of rows of one lane. Where a lane has more, the result ends with its last row read, so that
    no later row of another lane overtakes them.
    """
    confirmed = yield "select lane, number from audit_stream_position where kind = $1", (kind,)
    positions: dict[int, int] = dict(confirmed)
    heads = yield "select lane, number from audit_head order by lane", ()
    pages: list[list[AuditRow]] = []
    count, cut = 0, []
    for lane, last in heads:
        after = positions.get(lane, 0)
        if last <= after:
            continue
        count += last - after
        found = yield (
            f"select {COLUMNS} from audit where lane = $1 and number > $2 and number <= $3 order by number limit $4",  # noqa: S608
            (lane, after, last, per_lane),
        )
        rows = [AuditRow(*row) for row in found]
        pages.append(rows)
        if len(rows) == per_lane and rows[-1].number < last:
            cut.append(rows[-1])
    return Pending(tuple(_until(_merged(pages), cut)), count)


def _merged(pages: Iterable[list[AuditRow]]) -> Iterator[AuditRow]:
    """Merge lanes by time. A clock that was set back does not change the order of a lane."""

    def timed(rows: list[AuditRow]) -> Iterator[tuple[int, int, int, AuditRow]]:
        latest = 0
        for row in rows:
            latest = max(latest, row.at)
            yield latest, row.lane, row.number, row

    for *_, row in heapq.merge(*map(timed, pages)):
        yield row


def _until(rows: Iterable[AuditRow], cut: list[AuditRow]) -> Iterator[AuditRow]:
    """The rows up to the first of `cut`, inclusive."""
    ends = {(row.lane, row.number) for row in cut}
    for row in rows:
        yield row
        if (row.lane, row.number) in ends:
            return


@retryable
def advance(kind: str, holder: str, rows: Iterable[AuditRow]) -> Query[None]:
    """Store that the receiver has confirmed rows. Raises LeaseLost if another process has taken the stream over."""
    reached = {row.lane: row for row in rows}
    held = yield "update audit_stream set holder = $2 where kind = $1 and holder = $2 returning kind", (kind, holder)
    if not held:
        raise LeaseLost("Another process streams the audit trail now.")
    for lane in sorted(reached):
        yield (
            "insert into audit_stream_position (kind, lane, number, hash) values ($1, $2, $3, $4) "
            "on conflict (kind, lane) do update set number = excluded.number, hash = excluded.hash",
            (kind, lane, reached[lane].number, reached[lane].hash),
        )
