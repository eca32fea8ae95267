"""Audit trail: who did what to which ids, when, and with which outcome; sharded and hash-chained.

A change of state records itself in its own transaction, as the last part:

    def change(…) -> Query[None]:
        yield from parties.disable(…)
        yield from audit.record(Entry(now, actor, Action.PARTY_DISABLED, {"party": client_id}))

Rows are in sixteen shards (column `lane`), so that writers rarely wait for each other; each shard is a hash chain. Each
row has

    commitment = SHA-256(salt || subject)                       salt: 16 random bytes; subject: JSON, UTF-8
    hash = SHA-256(label, previous hash, lane, number, at, actor, action, outcome, trace_id, commitment)

where the members of the second hash are framed one after another as `length:text` (length of the UTF-8 text in bytes,
decimal) or `-` for null. The hash before the first row is 64 zeros, and `audit_head` holds the chain head: number and
hash of the last row. So a changed, removed or moved row is detected, also the last one of a shard. A subject can be
erased, because the chain contains only its commitment; without the salt it cannot be found by guessing ids.

A chain without a secret cannot prove that it was not rewritten as a whole, or cut together with its head. For that,
keep an export elsewhere: see `ccp.server.audit.verification.ChainVerifier`.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from ccp.errors import ConfigurationError
from ccp.server.domain.parties import Standing
from ccp.server.storage.engine.query import Query, Row, T, long_read, preserve_retryable, read_committed
from ccp.server.storage.queries.caller_standing import STANDING_EXPRESSION, check_row, check_standing
from ccp.server.storage.queries.contracts import instant, microseconds

SHARDS: Final = 16
MAX_LANE: Final = 32_767
"""The largest value of the column `lane`."""
GENESIS_HASH: Final = "0" * 64
"""The previous hash of the first row."""

_COLUMNS: Final = "lane, number, at, actor, action, outcome, trace_id, subject, salt, commitment, hash"
COLUMNS: Final = _COLUMNS
"""The columns of an `AuditRow`, in order."""

# Actors that are not parties. The actor of a command is `cli:` and the operating system's user, see
# `ccp.server.audit.actor.command_actor`.
POOL: Final = "pool"
PCP: Final = "pcp"
UNKNOWN: Final = "unknown"


class Action(StrEnum):
    """What is recorded. The values are stable."""

    CONTRACT_PUBLISHED = "contract.published"
    CONTRACT_REPLACED = "contract.replaced"
    CONTRACT_MOVED = "contract.moved"
    CONTRACT_WITHDRAWN = "contract.withdrawn"
    CONTRACT_DEFAULT = "contract.default"
    CONTRACT_PURGED = "contract.purged"
    VEHICLE_FORGOTTEN = "vehicle.forgotten"
    PARTY_ADDED = "party.added"
    PARTY_EDITED = "party.edited"
    PARTY_DISABLED = "party.disabled"
    PARTY_ENABLED = "party.enabled"
    SECRET_ROTATED = "secret.rotated"  # noqa: S105  a name, no secret
    KEY_ROTATED = "key.rotated"
    KEY_REVOKED = "key.revoked"
    ANCHOR_ADDED = "anchor.added"
    ANCHOR_REMOVED = "anchor.removed"
    CRL_NUMBER_ACCEPTED = "crl.number.accepted"
    PEER_ADDED = "peer.added"
    PEER_EDITED = "peer.edited"
    PEER_DISABLED = "peer.disabled"
    PEER_ENABLED = "peer.enabled"
    PEER_REMOVED = "peer.removed"
    WEBHOOK_ADDED = "webhook.added"
    WEBHOOK_EDITED = "webhook.edited"
    WEBHOOK_REMOVED = "webhook.removed"
    WEBHOOK_SECRET_ROTATED = "webhook.secret.rotated"  # noqa: S105  a name, no secret
    WEBHOOK_PINGED = "webhook.pinged"
    SUBSCRIPTION_ADDED = "subscription.added"
    SUBSCRIPTION_EDITED = "subscription.edited"
    SUBSCRIPTION_REMOVED = "subscription.removed"
    CERTIFICATE_REQUESTED = "certificate.requested"
    CERTIFICATE_ISSUED = "certificate.issued"
    EVENTS_REPLAYED = "events.replayed"
    EVENTS_DROPPED = "events.dropped"
    CONSOLE_LOGGED_IN = "console.logged.in"
    CONSOLE_LOGGED_OUT = "console.logged.out"
    CONSOLE_SESSION_ENDED = "console.session.ended"
    AUDIT_VERIFICATION_STARTED = "audit.verification.started"
    PEER_TESTED = "peer.tested"
    SERVICE_TESTED = "service.tested"
    ACCESS_REFUSED = "access.refused"
    DATA_ERASED = "data.erased"
    DATABASE_RESTORED = "database.restored"
    STORAGE_KEY_SELECTED = "storage_key.selected"
    STORAGE_KEY_ROTATED = "storage_key.rotated"


@dataclass(frozen=True, slots=True)
class Entry:
    """A row to record.

    actor: a client id, POOL, PCP, UNKNOWN, or `cli:` and a user. subject: ids by kind (emaid, pcid, party, kid,
    fingerprint, role, …) and related details, for JSON; never a secret. outcome: "ok", or an error code and the HTTP
    status. trace_id: of the request, None or empty without one.
    """

    at: datetime
    actor: str
    action: Action
    subject: Mapping[str, Any]
    outcome: str = "ok"
    trace_id: str | None = None
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(16), repr=False)

    @property
    def lane(self) -> int:
        """Number of the shard, constant for the same vehicle, contract or actor."""
        about = next((self.subject[kind] for kind in ("pcid", "emaid") if self.subject.get(kind)), self.actor)
        return zlib.crc32(str(about).encode()) % SHARDS


Place: TypeAlias = tuple[int, int, int]
"""Time (microseconds since 1970), shard and number of a row: its place in lists."""


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A stored row.

    lane: number of its shard. at: microseconds since 1970. subject, salt: None if erased; salt in hexadecimal.
    """

    lane: int
    number: int
    at: int
    actor: str
    action: str
    outcome: str
    trace_id: str | None
    subject: str | None
    salt: str | None
    commitment: str
    hash: str

    @property
    def when(self) -> datetime:
        """The time of the row."""
        return instant(self.at)

    @property
    def place(self) -> Place:
        """The place of the row in lists, which are newest first."""
        return self.at, self.lane, self.number

    def names(self, canonical: str) -> bool:
        """Whether the subject contains an id as a whole word, in its canonical form or in lower case."""
        if self.subject is None:
            return False
        return re.search(rf"(?<!\w){re.escape(canonical)}(?!\w)", self.subject, re.ASCII | re.IGNORECASE) is not None

    def members(self) -> dict[str, Any]:
        """The row as `ccp audit export` writes it: the columns by name, as they are hashed."""
        return {name: getattr(self, name) for name in _COLUMNS.split(", ")}


@dataclass(frozen=True, slots=True)
class ChainHead:
    """Number and hash of the last row of a shard; 0 and GENESIS_HASH without rows."""

    number: int
    hash: str


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions of a search; a row matches all that are given. since: inclusive. until: exclusive.

    outcome: "ok", "refused" for anything else, or an exact outcome. ids: canonical; the row names each of them.
    """

    since: datetime | None = None
    until: datetime | None = None
    actor: str | None = None
    action: str | None = None
    outcome: str | None = None
    ids: tuple[str, ...] = ()


def commitment_of(salt: bytes, subject: str) -> str:
    """salt: 16 bytes. Returns hexadecimal, as every hash here."""
    return hashlib.sha256(salt + subject.encode()).hexdigest()


def hash_of(before: str, row: AuditRow) -> str:
    """The hash of a row from its clear columns and its commitment. before: hash of the previous row."""
    columns = (row.lane, row.number, row.at, row.actor, row.action, row.outcome, row.trace_id, row.commitment)
    return _chain(before, columns)


def _chain(before: str, columns: Iterable[str | int | None]) -> str:
    return hashlib.sha256(_LABEL + b"".join(map(_frame, (before, *columns)))).hexdigest()


def _frame(value: str | int | None) -> bytes:
    if value is None:
        return b"-"
    text = str(value).encode()
    return b"%d:%s" % (len(text), text)


_LABEL: Final = _frame("opnc-ccp audit 1")


def record(*entries: Entry, standing: Standing | None = None) -> Query[None]:
    """Record entries, as the last part of a change: it locks the chain heads until the end of the transaction.

    Call it once in a transaction. Chain heads are locked in order of their shards, so writers cannot deadlock.
    standing: of the caller who makes the change; checked here, after every lock that the change waited for. Raises
    ConfigurationError if a chain head is missing, and the errors of
    `ccp.server.storage.queries.caller_standing.check_standing`.
    """
    if standing is not None and not entries:
        yield from check_standing(standing)
    placed = [(entry.lane, entry) for entry in entries]
    for lane in sorted({lane for lane, _ in placed}):
        if standing is None:
            rows = yield _LOCK_HEAD, (lane,)
        else:
            rows = yield _LOCK_HEAD_AND_LOOK, (lane, standing.client_id, standing.kid)
        if not rows:
            raise ConfigurationError(f"The audit trail has lost the head of lane {lane}; see ccp audit verify.")
        if standing is not None:
            check_row(standing, rows[0][2])
            standing = None
        number, before = rows[0][:2]
        for shard, entry in placed:
            if shard == lane:
                number += 1
                values = _values(entry, lane, number, before)
                yield _INSERT, values
                before = values[-1]
        yield "update audit_head set number = $1, hash = $2 where lane = $3", (number, before, lane)


_LOCK_HEAD: Final = "select number, hash from audit_head where lane = $1 for update"
_LOCK_HEAD_AND_LOOK: Final = (
    f"select number, hash, {STANDING_EXPRESSION.format(client_id='$2', kid='$3')} "  # noqa: S608  constants
    "from audit_head where lane = $1 for update"
)


def with_audit(change: Query[T], entries: Callable[[T], Iterable[Entry]], standing: Standing | None = None) -> Query[T]:
    """Wrap a change with its audit entries. entries: makes them from the result of the change.

    standing: of the caller who makes the change, see `record`.
    """
    return preserve_retryable(change, lambda: _with_audit(change, entries, standing))


def _with_audit(change: Query[T], entries: Callable[[T], Iterable[Entry]], standing: Standing | None) -> Query[T]:
    result = yield from change
    yield from record(*entries(result), standing=standing)
    return result


_INSERT: Final = (
    f"insert into audit ({_COLUMNS}) "  # noqa: S608  constants
    "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
)


_SUBJECT: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def _values(entry: Entry, lane: int, number: int, before: str) -> Row:
    """The columns of an entry's row. Every change calls this, so it builds no intermediate objects."""
    subject = _SUBJECT.encode(entry.subject)
    commitment = commitment_of(entry.salt, subject)
    columns = (
        lane, number, microseconds(entry.at), entry.actor, entry.action.value, entry.outcome, entry.trace_id or None,
    )  # fmt: skip
    return (*columns, subject, entry.salt.hex(), commitment, _chain(before, (*columns, commitment)))


# --- Reading ---------------------------------------------------------------------------------------------------------


def chain_head(lane: int) -> Query[tuple[ChainHead | None, int]]:
    """The chain head of a shard, and the number of rows outside of its range; both from one snapshot."""
    heads = yield "select number, hash from audit_head where lane = $1", (lane,)
    head = ChainHead(*heads[0]) if heads else None
    covered = head.number if head else 0
    rows = yield (
        "select count(*) from audit where lane = $1 and (number < 1 or number > $2)",
        (lane, covered),
    )
    return head, rows[0][0]


@read_committed
def page(lane: int, after: int, until: int, limit: int = 500) -> Query[list[AuditRow]]:
    """Rows of a shard in order, with numbers above `after`, up to `until`."""
    select = f"select {_COLUMNS} from audit where lane = $1 and number > $2 and number <= $3 order by number limit $4"  # noqa: S608
    rows = yield select, (lane, after, until, limit)
    return [AuditRow(*row) for row in rows]


def count_outside_shards() -> Query[int]:
    """Number of rows and chain heads with a shard number out of range."""
    rows = yield "select count(*) from audit where lane < 0 or lane >= $1", (SHARDS,)
    heads = yield "select count(*) from audit_head where lane < 0 or lane >= $1", (SHARDS,)
    count: int = rows[0][0] + heads[0][0]
    return count


@long_read
def search(wanted: Filter, limit: int, before: Place | None = None) -> Query[list[AuditRow]]:
    """The matching rows, newest first, beginning after a place. Fewer than `limit` after the last ones."""
    found: list[AuditRow] = []
    while True:
        asked = limit - len(found)
        rows = yield _search(wanted, asked, before)
        read = [AuditRow(*row) for row in rows]
        found += [row for row in read if all(row.names(canonical) for canonical in wanted.ids)]
        if len(read) < asked or len(found) == limit:
            return found
        before = read[-1].place


def before_time(at: datetime) -> Place:
    """The place behind which every row is older than a time: that before the first shard, a microsecond earlier."""
    return microseconds(at) - 1, -1, 0


def _search(wanted: Filter, limit: int, before: Place | None) -> tuple[str, Row]:
    conditions: list[str] = []
    parameters: list[Any] = []

    def add(condition: str, value: Any) -> None:
        parameters.append(value)
        conditions.append(condition.replace("?", f"${len(parameters)}"))

    if wanted.since is not None:
        add("at >= ?", microseconds(wanted.since))
    if wanted.until is not None:
        add("at < ?", microseconds(wanted.until))
    if wanted.actor is not None:
        add("actor = ?", wanted.actor)
    if wanted.action is not None:
        add("action = ?", wanted.action)
    if wanted.outcome == "refused":
        add("outcome <> ?", "ok")
    elif wanted.outcome is not None:
        add("outcome = ?", wanted.outcome)
    for canonical in wanted.ids:
        add(_NAMES, _pattern(canonical))
    if before is not None:
        at, lane, number = (f"${len(parameters) + place}" for place in (1, 2, 3))
        parameters += before
        # The first condition bounds the index; the second excludes what the pages before have shown.
        conditions.append(f"at <= {at} and (at < {at} or lane > {lane} or (lane = {lane} and number < {number}))")
    where = f"where {' and '.join(conditions)} " if conditions else ""
    parameters.append(limit)
    return (
        f"select {_COLUMNS} from audit {where}order by at desc, lane, number desc limit ${len(parameters)}",  # noqa: S608
        tuple(parameters),
    )


@read_committed
def time_of_row(since: datetime, until: datetime, place: int) -> Query[datetime | None]:
    """Time of a row of a period, counted from its newest row; None if the period has fewer rows. place: from 0.

    Reads the index of times only.
    """
    rows = yield (
        "select at from audit where at >= $1 and at < $2 order by at desc limit 1 offset $3",
        (microseconds(since), microseconds(until), place),
    )
    return instant(rows[0][0]) if rows else None


_NAMES: Final = "lower(subject) like ? escape '!'"


def _pattern(canonical: str) -> str:
    """A LIKE pattern for subjects that name an id. It matches some others too; `AuditRow.names` decides."""
    return f"%{canonical.lower().replace('_', '!_')}%"


# --- Erasing ---------------------------------------------------------------------------------------------------------


@read_committed
def shard_lengths() -> Query[dict[int, int]]:
    """The number of the last row of each shard."""
    rows = yield "select lane, number from audit_head", ()
    return dict(rows)


def rows_naming(canonical: str, after: Mapping[int, int] = MappingProxyType({})) -> Query[list[AuditRow]]:
    """Every row that names an EMAID or a PCID. after: by shard, rows up to this number are skipped."""
    found = []
    for lane in range(SHARDS):
        found += yield from rows_naming_in_shard(canonical, lane, after.get(lane, 0), 2**62)  # Above any number.
    return found


@long_read
def rows_naming_in_shard(canonical: str, lane: int, after: int, until: int) -> Query[list[AuditRow]]:
    """Rows of a shard that name an EMAID or a PCID, with numbers above `after`, up to `until`.

    There is no index for this (docs/decisions/0022), so each row is read.
    """
    rows = yield (
        f"select {_COLUMNS} from audit where lane = $1 and number > $2 and number <= $3 "  # noqa: S608  constants
        f"and {_NAMES.replace('?', '$4')}",
        (lane, after, until, _pattern(canonical)),
    )
    return [row for row in (AuditRow(*row) for row in rows) if row.names(canonical)]


@long_read
def latest_naming(canonical: str, examined: int) -> Query[list[AuditRow]]:
    """Rows that name a vehicle, newest first, among the latest rows of the shard of its changes.

    canonical: PCID. examined: number of rows to read, so that the time does not depend on the length of the trail.
    """
    lane = zlib.crc32(canonical.encode()) % SHARDS
    heads = yield "select number from audit_head where lane = $1", (lane,)
    if not heads:
        return []
    rows = yield (
        f"select {_COLUMNS} from audit where lane = $1 and number > $2 and {_NAMES.replace('?', '$3')} "  # noqa: S608
        "order by number desc",
        (lane, heads[0][0] - examined, _pattern(canonical)),
    )
    return [row for row in (AuditRow(*row) for row in rows) if row.names(canonical)]


def erase_subjects(rows: Iterable[AuditRow]) -> Query[None]:
    """Blank the subjects of rows. The caller records DATA_ERASED entries that list them, see `erasure_entries`."""
    for row in sorted(rows, key=lambda row: (row.lane, row.number)):
        yield "update audit set subject = null, salt = null where lane = $1 and number = $2", (row.lane, row.number)


_MAX_LISTED: Final = 500  # Rows in one entry.


def erasure_entries(rows: Iterable[AuditRow], now: datetime, actor: str, what: Mapping[str, Any]) -> list[Entry]:
    """Entries that list the erased rows; at least one, also without rows. what: the rest of the subject."""
    places = sorted([row.lane, row.number] for row in rows)
    parts = [places[start : start + _MAX_LISTED] for start in range(0, len(places), _MAX_LISTED)] or [[]]
    return [Entry(now, actor, Action.DATA_ERASED, {**what, "rows": part}) for part in parts]
