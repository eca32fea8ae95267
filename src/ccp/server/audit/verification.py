"""Verification of the audit trail: each lane is a hash chain, and its head says where the chain ends."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ccp.server.storage import Store
from ccp.server.storage.queries import audit as queries
from ccp.server.storage.queries.audit import GENESIS_HASH, SHARDS, Action, AuditRow, ChainHead, commitment_of, hash_of

_MISSING_HEAD: Final = "the lane's head is missing, so missing rows could not be detected"


@dataclass(frozen=True, slots=True)
class LaneHead:
    """The head of a lane.

    head: None where it is missing. outside: rows of the lane that the head does not cover. of_stream: whether it is
    only the last row that a receiver of the stream has; the lane may go on.
    """

    lane: int
    head: ChainHead | None
    outside: int = 0
    of_stream: bool = False


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """The first row of a lane that differs from what was recorded. why: the reason, as the end of a sentence."""

    lane: int
    number: int
    why: str


@dataclass(frozen=True, slots=True)
class Erasure:
    """A row DATA_ERASED as `ccp erase` writes it.

    at: microseconds since 1970. kind: what was erased, "emaid" or "pcid". rows: lane and number of each blanked row.
    """

    lane: int
    number: int
    at: int
    actor: str
    kind: str
    rows: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ChainVerification:
    """Result of a verification.

    rows: number of rows verified. erased: rows of these without a subject. broken: at most one row for each lane.
    """

    rows: int
    erased: int
    broken: tuple[BrokenRow, ...]

    def with_broken(self, more: Iterable[BrokenRow]) -> ChainVerification:
        """The result with further findings; the first row of each lane is kept."""
        first: dict[int, BrokenRow] = {}
        for row in sorted((*self.broken, *more), key=lambda row: row.number):
            first.setdefault(row.lane, row)
        return ChainVerification(self.rows, self.erased, tuple(first[lane] for lane in sorted(first)))


class ChainVerifier:
    """Verifies rows against their chains. Pure; fed with each lane's rows in order and then with the lane's head.

    A row without a subject is accepted if an intact erasure lists it, in another lane or later in the same one. Only
    an earlier export can show whether that erasure was carried out by `ccp erase`: see
    `ccp.server.audit.export_comparison`. A lane may be fed with more rows and another head after its head.
    """

    def __init__(self, earlier: Mapping[int, ChainHead] | None = None) -> None:
        """earlier: heads of an export that was kept elsewhere; the trail has to be its continuation."""
        self._earlier = dict(earlier or {})
        self._reached = {lane: ChainHead(0, GENESIS_HASH) for lane in range(SHARDS)}
        self._ended: set[int] = set()
        self._broken: dict[int, BrokenRow] = {}
        self._without: set[tuple[int, int]] = set()
        self._listed: dict[tuple[int, int], Erasure] = {}
        self._rows = 0

    @property
    def uncovered(self) -> set[tuple[int, int]]:
        """Lane and number of the rows without a subject that no erasure fed so far lists."""
        return self._without - self._listed.keys()

    @property
    def blanked(self) -> dict[tuple[int, int], Erasure | None]:
        """Lane and number of the rows without a subject, each with the erasure that lists it."""
        return {place: self._listed.get(place) for place in self._without}

    def feed(self, row: AuditRow) -> None:
        """Verify the next row of a lane."""
        self._rows += 1
        before = self._reached.get(row.lane)
        if before is None:
            self._break(row.lane, row.number, "the lane does not exist")
            return
        problem = _problem(row, before)
        earlier = self._earlier.get(row.lane)
        if problem is None and earlier is not None and row.number == earlier.number and row.hash != earlier.hash:
            problem = "the earlier export has another row here: the lane was rewritten"
        if problem is not None:
            self._break(row.lane, row.number, problem)
        elif (erasure := _erasure(row)) is not None:
            for place in erasure.rows:
                if place[0] != row.lane or place[1] < row.number:
                    self._listed.setdefault(place, erasure)
        if row.subject is None:
            self._without.add((row.lane, row.number))
        self._reached[row.lane] = ChainHead(row.number, row.hash)

    def feed_head(self, end: LaneHead) -> None:
        """Verify the head of a lane against the rows fed before."""
        self._ended.add(end.lane)
        reached = self._reached.get(end.lane)
        if reached is None:
            self._break(end.lane, 0, "the lane does not exist")
            return
        last = reached.number
        if end.head is None:
            self._break(end.lane, last + 1, _MISSING_HEAD)
        elif end.head.number > last:
            self._break(end.lane, last + 1, f"rows are missing, up to {end.head.number}")
        elif end.head.number < last or end.outside:
            self._break(end.lane, end.head.number + 1, "there are rows beyond the lane's head")
        elif end.head.hash != reached.hash:
            self._break(end.lane, last, "the lane's head has another hash")
        earlier = self._earlier.get(end.lane)
        if earlier is not None and earlier.number > last:
            self._break(end.lane, last + 1, f"the earlier export has rows up to {earlier.number}")

    def result(self) -> ChainVerification:
        """The findings after everything was fed. A lane whose head was not fed is broken."""
        for lane in set(range(SHARDS)) - self._ended:
            self._break(lane, self._reached[lane].number + 1, _MISSING_HEAD)
        for lane, number in self.uncovered:
            self._break(lane, number, "its subject was removed, and no erasure lists it")
        broken = tuple(self._broken[lane] for lane in sorted(self._broken))
        return ChainVerification(self._rows, len(self._without), broken)

    def _break(self, lane: int, number: int, why: str) -> None:
        known = self._broken.get(lane)
        if known is None or number < known.number:
            self._broken[lane] = BrokenRow(lane, number, why)


def _problem(row: AuditRow, before: ChainHead) -> str | None:
    """Why a row is broken, its position in the chain first; None if it is intact."""
    if row.number > before.number + 1:
        return f"rows {before.number + 1} to {row.number - 1} before it are missing"
    if row.number < before.number + 1:
        return "its number is out of sequence"
    try:
        if hash_of(before.hash, row) != row.hash:
            return "its hash does not match: it was changed or moved, or the row before it was"
        if row.subject is None:
            return None if row.salt is None else "its subject was removed, but its salt was not"
        if row.salt is None or commitment_of(bytes.fromhex(row.salt), row.subject) != row.commitment:
            return "its subject was changed"
    except (ValueError, TypeError, AttributeError):  # Not text or not hexadecimal: not written by this software.
        return "it is malformed"
    return None


def _erasure(row: AuditRow) -> Erasure | None:
    """The erasure that an intact row records; None for a row that `ccp erase` cannot have written."""
    if row.action != Action.DATA_ERASED or row.outcome != "ok" or not row.actor.startswith("cli:"):
        return None
    try:
        subject = json.loads(row.subject or "")
        kind, rows = subject["kind"], tuple((_integer(lane), _integer(number)) for lane, number in subject["rows"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return Erasure(row.lane, row.number, row.at, row.actor, kind, rows) if kind in ("emaid", "pcid") else None


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("not an integer")
    return value


_NO_LIMIT: Final = 2**62  # Beyond every row number.


async def verify_trail(store: Store, verifier: ChainVerifier) -> AsyncIterator[AuditRow | LaneHead]:
    """Feed the verifier with the whole trail, and yield each row and head after it was fed.

    The trail may grow meanwhile. The erasure that lists a row can be in a lane that was read already, so while a row
    without a subject is not listed, the rows that were added since are read in a second pass.
    """
    reached = dict.fromkeys(range(SHARDS), 0)
    unknown_lanes = await store.read(queries.count_outside_shards())
    if unknown_lanes:
        verifier.feed_head(LaneHead(SHARDS, None, unknown_lanes))
    for _ in range(2):
        for lane in range(SHARDS):
            head, outside = await store.read(queries.chain_head(lane))
            until = head.number if head is not None else _NO_LIMIT
            while rows := await store.read(queries.page(lane, reached[lane], until)):
                reached[lane] = rows[-1].number
                for row in rows:
                    verifier.feed(row)
                    yield row
            end = LaneHead(lane, head, outside)
            verifier.feed_head(end)
            yield end
        if not verifier.uncovered:
            return
