"""Around the audit trail: is it whole, who acts from a command line, and refused access, which can come in floods."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeAlias

import structlog

from ccp.errors import CCPError, ConfigurationError
from ccp.server.runtime.background import BackgroundTasks, PeriodicTask, Supervised
from ccp.server.storage import Store
from ccp.server.storage.queries import audit as queries
from ccp.server.storage.queries.audit import (
    GENESIS_HASH,
    SHARDS,
    UNKNOWN,
    Action,
    AuditRow,
    ChainHead,
    Entry,
    commitment_of,
    hash_of,
)

_log = structlog.get_logger("ccp.server.audit.trail")


def command_actor() -> str:
    """Who acts from the command line: the operating system's user, whatever the environment says."""
    user = os.getuid()
    try:
        import pwd

        return f"cli:{pwd.getpwuid(user).pw_name}"
    except (ImportError, KeyError):
        return f"cli:{user}"


# --- Verification ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class End:
    """Where a lane ends. head: None where it is missing. outside: rows of the lane that the head does not cover."""

    lane: int
    head: ChainHead | None
    outside: int = 0


@dataclass(frozen=True, slots=True)
class Broken:
    """The first row of a lane that is not as it was recorded, and what is wrong with it."""

    lane: int
    number: int
    why: str


@dataclass(frozen=True, slots=True)
class Erasure:
    """A row DATA_ERASED as `ccp erase` writes it. at: microseconds since 1970. kind: what was erased, emaid or pcid.

    rows: lane and number of the rows that it blanked.
    """

    lane: int
    number: int
    at: int
    actor: str
    kind: str
    rows: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """rows: how many were looked at. erased: how many of them have no subject any more. broken: one for each lane."""

    rows: int
    erased: int
    broken: tuple[Broken, ...]

    def with_broken(self, more: Iterable[Broken]) -> Verdict:
        """The verdict with what else was found; of each lane the first row stays."""
        first: dict[int, Broken] = {}
        for each in sorted((*self.broken, *more), key=lambda each: each.number):
            first.setdefault(each.lane, each)
        return Verdict(self.rows, self.erased, tuple(first[lane] for lane in sorted(first)))


class Verifier:
    """Holds rows against their chains. Pure; takes each lane's rows in order and then its end.

    A row without subject is accepted where an intact erasure lists it, in another lane or later in the same one.
    Whether that erasure was a real one only an earlier export can show, see `ccp.server.audit.comparison`. After more
    rows came, a lane may be ended again.
    """

    def __init__(self, earlier: Mapping[int, ChainHead] | None = None) -> None:
        """earlier: the ends of an export that was kept elsewhere; the trail has to be its continuation."""
        self._earlier = dict(earlier or {})
        self._reached = {lane: ChainHead(0, GENESIS_HASH) for lane in range(SHARDS)}
        self._ended: set[int] = set()
        self._broken: dict[int, Broken] = {}
        self._without: set[tuple[int, int]] = set()
        self._listed: dict[tuple[int, int], Erasure] = {}
        self._rows = 0

    @property
    def uncovered(self) -> set[tuple[int, int]]:
        """Lane and number of rows without subject that no erasure seen so far lists."""
        return self._without - self._listed.keys()

    @property
    def blanked(self) -> dict[tuple[int, int], Erasure | None]:
        """Lane and number of rows without subject, each with the erasure that lists it."""
        return {place: self._listed.get(place) for place in self._without}

    def take(self, row: AuditRow) -> None:
        self._rows += 1
        before = self._reached.get(row.lane)
        if before is None:
            self._break(row.lane, row.number, "there is no such lane")
            return
        problem = _problem(row, before)
        earlier = self._earlier.get(row.lane)
        if problem is None and earlier is not None and row.number == earlier.number and row.hash != earlier.hash:
            problem = "the earlier export has another row here: the lane was written anew"
        if problem is not None:
            self._break(row.lane, row.number, problem)
        elif (erasure := _erasure(row)) is not None:
            for place in erasure.rows:
                if place[0] != row.lane or place[1] < row.number:
                    self._listed.setdefault(place, erasure)
        if row.subject is None:
            self._without.add((row.lane, row.number))
        self._reached[row.lane] = ChainHead(row.number, row.hash)

    def end(self, end: End) -> None:
        self._ended.add(end.lane)
        reached = self._reached.get(end.lane)
        if reached is None:
            self._break(end.lane, 0, "there is no such lane")
            return
        last = reached.number
        if end.head is None:
            self._break(end.lane, last + 1, "the lane's end is missing: nothing tells whether rows are")
        elif end.head.number > last:
            self._break(end.lane, last + 1, f"rows are missing, up to {end.head.number}")
        elif end.head.number < last or end.outside:
            self._break(end.lane, end.head.number + 1, "rows stand beyond the lane's end")
        elif end.head.hash != reached.hash:
            self._break(end.lane, last, "the lane's end has another hash")
        earlier = self._earlier.get(end.lane)
        if earlier is not None and earlier.number > last:
            self._break(end.lane, last + 1, f"the earlier export has rows up to {earlier.number}")

    def verdict(self) -> Verdict:
        """What has been found, after everything was taken. A lane that was not ended is broken."""
        for lane in set(range(SHARDS)) - self._ended:
            self._break(
                lane, self._reached[lane].number + 1, "the lane's end is missing: nothing tells whether rows are"
            )
        for lane, number in self.uncovered:
            self._break(lane, number, "its subject was removed, and no erasure says so")
        broken = tuple(self._broken[lane] for lane in sorted(self._broken))
        return Verdict(self._rows, len(self._without), broken)

    def _break(self, lane: int, number: int, why: str) -> None:
        known = self._broken.get(lane)
        if known is None or number < known.number:
            self._broken[lane] = Broken(lane, number, why)


def _problem(row: AuditRow, before: ChainHead) -> str | None:
    """What is wrong with a row, its place in the chain first."""
    if row.number > before.number + 1:
        return f"rows {before.number + 1} to {row.number - 1} before it are missing"
    if row.number < before.number + 1:
        return "its number does not follow"
    try:
        if hash_of(before.hash, row) != row.hash:
            return "its hash does not fit: it was changed or moved, or the row before it was"
        if row.subject is None:
            return None if row.salt is None else "its subject was removed, and its salt was not"
        if row.salt is None or commitment_of(bytes.fromhex(row.salt), row.subject) != row.commitment:
            return "its subject was changed"
    except (ValueError, TypeError, AttributeError):  # What no writer of ours puts there: no text, no hexadecimal.
        return "it is malformed"
    return None


def _erasure(row: AuditRow) -> Erasure | None:
    """What an intact row says of an erasure; None for a row that `ccp erase` cannot have written."""
    if row.action != Action.DATA_ERASED or row.outcome != "ok" or not row.actor.startswith("cli:"):
        return None
    try:
        subject = json.loads(row.subject or "")
        kind, rows = subject["kind"], tuple((_whole(lane), _whole(number)) for lane, number in subject["rows"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return Erasure(row.lane, row.number, row.at, row.actor, kind, rows) if kind in ("emaid", "pcid") else None


_ALL: Final = 2**62  # More than there can be.


async def walk(store: Store, verifier: Verifier) -> AsyncIterator[AuditRow | End]:
    """Every row, lane by lane, and each lane's end after its rows; the verifier sees them first.

    The trail may grow meanwhile. What a row says of an erasure can stand in a lane that was passed already, so where
    one is wanting, the rows that have come since are gone through too.
    """
    reached = dict.fromkeys(range(SHARDS), 0)
    strangers = await store.read(queries.count_outside_shards())
    if strangers:
        verifier.end(End(SHARDS, None, strangers))
    for _ in range(2):
        for lane in range(SHARDS):
            head, outside = await store.read(queries.chain_head(lane))
            until = head.number if head is not None else _ALL
            while rows := await store.read(queries.page(lane, reached[lane], until)):
                reached[lane] = rows[-1].number
                for row in rows:
                    verifier.take(row)
                    yield row
            end = End(lane, head, outside)
            verifier.end(end)
            yield end
        if not verifier.uncovered:
            return


# --- Export ----------------------------------------------------------------------------------------------------------

FORMAT: Final = "opnc-ccp audit 1"
Line: TypeAlias = dict[str, Any]


def first_line(at: datetime) -> Line:
    return {"format": FORMAT, "lanes": SHARDS, "exported_at": at.isoformat()}


def line_of(part: AuditRow | End) -> Line | None:
    """A row or an end as a line of an export; None for an end that is missing, as there is nothing to say."""
    if isinstance(part, AuditRow):
        return part.members()
    return None if part.head is None else {"end_of": part.lane, "number": part.head.number, "hash": part.head.hash}


def read_export(lines: Iterable[str]) -> Iterator[AuditRow | End]:
    """The rows and ends of an export. Raises ConfigurationError where it is none."""
    first = True
    for place, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            if first:
                if line["format"] != FORMAT or line["lanes"] != SHARDS:
                    raise ValueError("format")
                first = False
            elif "end_of" in line:
                yield End(_whole(line["end_of"]), ChainHead(_whole(line["number"]), _text(line["hash"])))
            else:
                yield _row(line)
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise ConfigurationError(f"Line {place} is not one of an audit export.") from exc
    if first:
        raise ConfigurationError("The file is empty; an audit export has a first line that says so.")


def _row(line: Line) -> AuditRow:
    return AuditRow(
        _whole(line["lane"]),
        _whole(line["number"]),
        _whole(line["at"]),
        _text(line["actor"]),
        _text(line["action"]),
        _text(line["outcome"]),
        None if line["trace_id"] is None else _text(line["trace_id"]),
        None if line["subject"] is None else _text(line["subject"]),
        None if line["salt"] is None else _text(line["salt"]),
        _text(line["commitment"]),
        _text(line["hash"]),
    )


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("a whole number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text")
    return value


# --- Refused access --------------------------------------------------------------------------------------------------

_EVERY: Final = 0.25  # Seconds between two visits to the database.
_BATCH: Final = 100  # Rows in one transaction.
_WINDOW: Final = 60.0  # Seconds.
_EACH: Final = 10  # Rows in a window for the same caller, address, operation and outcome; what is more is counted.
_ALL_TOGETHER: Final = 300  # Rows in a window for everybody; what is more is counted too.
_COUNTED: Final = 200  # Callers, addresses, … that are counted apart; what is more is counted together.
_WAITING: Final = 1_000  # Rows that wait in memory for a database that does not answer.

_Kind: TypeAlias = tuple[str, str | None, str | None, str]


@dataclass(slots=True)
class _Count:
    first: Entry
    last: Entry
    number: int = 1
    together: bool = False


@dataclass(slots=True)
class _Window:
    """until: of the monotonic clock."""

    until: float
    left: int = _ALL_TOGETHER
    seen: dict[_Kind, int] = field(default_factory=dict)


class Refusals:
    """Writes refused access to the trail, after the answer and in batches, so that a flood costs little.

    A caller who is refused now and then has a row for each time. In a flood each worker writes at most 300 rows a
    minute and counts the rest, by caller, address, operation and outcome, into one row for each of those at the end of
    the minute; beyond two hundred different ones it counts them together. What waits is lost when the process is
    killed: a quarter of a second of rows, a minute of counts.
    """

    def __init__(self, store: Store, window: float = _WINDOW) -> None:
        self._store = store
        self._seconds = window
        self._waiting: deque[Entry] = deque()
        self._counts: dict[_Kind, _Count] = {}
        self._window = _Window(0.0)
        self._task: Supervised | None = None

    def note(self, entry: Entry) -> None:
        """Take an entry in, without waiting. Its subject may have the members operation and address."""
        self._turn()
        window = self._window
        kind: _Kind = (entry.actor, entry.subject.get("operation"), entry.subject.get("address"), entry.outcome)
        seen = window.seen.get(kind, 0)
        if window.left and seen < _EACH and len(self._waiting) < _WAITING:
            window.left -= 1
            window.seen[kind] = seen + 1
            self._waiting.append(entry)
            return
        together = kind not in self._counts and len(self._counts) >= _COUNTED
        if together:
            kind = (UNKNOWN, None, None, entry.outcome)
        count = self._counts.get(kind)
        if count is None:
            self._counts[kind] = _Count(entry, entry, together=together)
        else:
            count.number += 1
            count.last = entry

    def _turn(self) -> None:
        """Begin another window where one is over."""
        if time.monotonic() >= self._window.until:
            self._window = _Window(time.monotonic() + self._seconds)
            self._tell_counts()

    def _tell_counts(self) -> None:
        """Let the counts wait to be written, unless the database is far behind: then they go on counting."""
        if len(self._waiting) >= _WAITING:
            return
        for (actor, operation, address, outcome), count in self._counts.items():
            subject: dict[str, Any] = {
                "count": count.number,
                "since": count.first.at.isoformat(),
                **({"operation": operation} if operation else {}),
                **({"address": address} if address else {}),
                **({"callers": "several"} if count.together else {}),
            }
            self._waiting.append(
                Entry(count.last.at, actor, Action.ACCESS_REFUSED, subject, outcome, count.last.trace_id)
            )
        self._counts.clear()

    def open(self, background: BackgroundTasks | None = None) -> None:
        # Asked to end, not cancelled: a cancelled write might commit without this process knowing.
        task = PeriodicTask("refused_access", self._round, _EVERY, max_retry_delay=5.0, interruptible=False)
        self._task = (background or BackgroundTasks()).add(task)

    async def close(self) -> None:
        """Write what waits, counts too, and end."""
        if self._task is not None:
            await self._task.stop()
            self._task = None
        try:
            await self._flush()
            self._tell_counts()
            await self._flush()
        except Exception as exc:  # A trail that was tampered with refuses rows.
            rows, counts = len(self._waiting), len(self._counts)
            _log.error("refused access not recorded", rows=rows, counts=counts, exc_info=not isinstance(exc, CCPError))

    async def _round(self) -> None:
        if self._counts:
            self._turn()
        await self._flush()

    async def _flush(self) -> None:
        """Write the waiting rows. Raises what a write raises; rows that were not written stay queued."""
        while self._waiting:
            batch = [self._waiting[place] for place in range(min(_BATCH, len(self._waiting)))]
            await self._store.write(queries.record(*batch))
            for _ in batch:
                self._waiting.popleft()
