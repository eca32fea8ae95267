"""Queries for refused deliveries and their reasons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from ccp.ids import EMAID, PCID
from ccp.server.storage.engine.query import Query, Row, long_read, long_write, retryable
from ccp.server.storage.queries.vehicle_lock import instant, microseconds

MAX_ROWS_OF_CALLER: Final = 10_000
MAX_ROWS: Final = 1_000_000
"""Rows of all callers. Beyond that each caller keeps its share; a caller with fewer rows loses none."""
MAX_OF_TRACE: Final = 16
PORTION: Final = 500
SEARCHED: Final = 10_000
"""Records that a page of a list searches. Filters without an index are applied to these."""
FIRST: Final = (2**63 - 1, "~")
"""Cursor of the first page."""

_COLUMNS: Final = (
    "id", "at", "client_id", "operation", "dialect", "status", "edition", "pcid", "wmi", "emaid", "digest", "code",
    "check_name", "reason", "request",
)  # fmt: skip
_SELECT: Final = ", ".join(f"r.{name}" for name in _COLUMNS)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused delivery.

    id: trace id; that of a further request of one trace has a number behind it, see `record`. client_id: the caller:
    a CPO, another pool, or the OEM that fetched a contract. edition: namespace of the message. pcid: as far as the
    request could be read. emaid: that the caller asked for. digest: SHA-256 of the vehicle's message, hexadecimal.
    code: see `ccp.errors.codes`. check: the failed check. request: the message, EXI, if it is kept. concerned: the
    vehicle's contracts that could not be delivered. named: other EMAIDs in a kept request.
    """

    id: str
    at: datetime
    client_id: str
    operation: str
    dialect: str
    status: int
    edition: str | None
    pcid: PCID | None
    emaid: EMAID | None
    digest: str | None
    code: str
    check: str | None
    reason: str
    request: bytes | None = None
    concerned: tuple[EMAID, ...] = ()
    named: tuple[EMAID, ...] = ()

    @property
    def trace_id(self) -> str:
        """The trace id of the request."""
        return self.id.partition(".")[0]

    @property
    def cursor(self) -> tuple[int, str]:
        """The place of the record in lists, which are newest first."""
        return microseconds(self.at), self.id


@dataclass(frozen=True, slots=True)
class RefusalFilter:
    """Which records to list; None does not restrict. id: a trace id. since, until: both inclusive."""

    id: str | None = None
    pcid: PCID | None = None
    emaid: EMAID | None = None
    client_id: str | None = None
    code: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    dialect: str | None = None
    edition: str | None = None


class RefusalPage(NamedTuple):
    """A page of a list. after: the cursor of the next page, None on the last one. is_complete: the page is full, or the
    last one; otherwise the search stopped after `SEARCHED` records.
    """

    found: list[Refusal]
    after: tuple[int, str] | None
    is_complete: bool


@retryable
def record(given: Sequence[Refusal]) -> Query[None]:
    """Store records. One that is stored already is not changed.

    A caller chooses the trace of its requests (W3C Trace Context) and may use one for several. So further records of a
    trace get ids of their own; beyond `MAX_OF_TRACE` they are not stored.
    """
    ids = [name for each in given for name in ids_of_trace(each.id)]
    held: dict[str, tuple[int, str]] = {}
    for start in range(0, len(ids), PORTION):
        part = ids[start : start + PORTION]
        rows = yield f"select id, at, client_id from refusal where id in ({_list(len(part))})", tuple(part)  # noqa: S608
        held |= {name: (at, client_id) for name, at, client_id in rows}
    found = []
    for each in given:
        own = (microseconds(each.at), each.client_id)
        free = next((name for name in ids_of_trace(each.id) if held.setdefault(name, own) == own), None)
        if free is not None:
            found.append(replace(each, id=free))
    if not found:
        return
    yield (
        f"insert into refusal ({', '.join(_COLUMNS)}) values {_places(len(found), len(_COLUMNS))} "  # noqa: S608
        "on conflict (id) do nothing",
        tuple(value for each in found for value in _row(each)),
    )
    contracts = [row for each in found for row in _contract_rows(each)]
    for start in range(0, len(contracts), PORTION):
        portion = contracts[start : start + PORTION]
        yield (
            f"insert into refusal_contract (refusal_id, emaid, provider_id, concerned, at) "  # noqa: S608  places
            f"values {_places(len(portion), 5)} on conflict (refusal_id, emaid) do nothing",
            tuple(value for row in portion for value in row),
        )


def ids_of_trace(trace_id: str) -> tuple[str, ...]:
    """The ids that the records of a trace have."""
    return trace_id, *(f"{trace_id}.{number}" for number in range(2, MAX_OF_TRACE + 1))


@retryable
def trim(client_id: str, keep: int = MAX_ROWS_OF_CALLER) -> Query[int]:
    """Remove the oldest records of a caller beyond a number. Returns how many."""
    rows = yield (
        "delete from refusal where client_id = $1 and at < coalesce((select at from refusal where client_id = $1 "
        "order by at desc limit 1 offset $2), 0) returning id",
        (client_id, keep - 1),
    )
    yield from _remove_contracts(row[0] for row in rows)
    return len(rows)


@long_read
def callers() -> Query[list[tuple[str, int]]]:
    """The callers with records, and how many each has."""
    rows = yield "select client_id, count(*) from refusal group by client_id order by client_id", ()
    return [(client_id, int(number)) for client_id, number in rows]


@retryable
def remove_before(moment: datetime, limit: int = PORTION) -> Query[int]:
    """Remove a portion of the records from before a time. Returns how many; fewer than `limit` after the last ones."""
    rows = yield (
        "delete from refusal where at < $1 and id in (select id from refusal where at < $1 order by at limit $2) "
        "returning id",
        (microseconds(moment), limit),
    )
    yield from _remove_contracts(row[0] for row in rows)
    return len(rows)


@long_read
def search(wanted: RefusalFilter, limit: int, before: tuple[int, str] = FIRST) -> Query[list[Refusal]]:
    """The records that match, newest first, beginning after a cursor. For the operator."""
    return (yield from _search(wanted, limit, before))


@long_read
def search_page(wanted: RefusalFilter, limit: int, before: tuple[int, str] = FIRST) -> Query[RefusalPage]:
    """A page of the records that match, newest first, in bounded time. For the operator.

    The search ends after `SEARCHED` records of the contract, vehicle, caller or code, whichever is given first.
    """
    edge = None if wanted.id is not None else (yield from _edge(wanted, before[0]))
    since = wanted.since
    if edge is not None:
        since = edge if since is None else max(edge, since)
    found = yield from _search(replace(wanted, since=since), limit + 1, before)
    if len(found) > limit:
        return RefusalPage(found[:limit], found[limit - 1].cursor, True)
    if edge is None or since != edge:
        return RefusalPage(found, None, True)
    return RefusalPage(found, (microseconds(edge), ""), False)


def _driving(wanted: RefusalFilter) -> tuple[str, str]:
    """The column whose index finds the records, and its value; empty for that of the time."""
    for column, value in (
        ("emaid", wanted.emaid),
        ("pcid", wanted.pcid),
        ("client_id", wanted.client_id),
        ("code", wanted.code),
    ):
        if value is not None:
            return column, str(value)
    return "", ""


def _edge(wanted: RefusalFilter, before: int) -> Query[datetime | None]:
    """The time of the oldest record that a page searches; None if there are fewer. Reads an index only."""
    column, value = _driving(wanted)
    table = "refusal_contract" if column == "emaid" else "refusal"
    until = before if wanted.until is None else min(before, microseconds(wanted.until))
    condition, values = (f"{column} = $3 and ", (value,)) if column else ("", ())
    rows = yield (
        f"select at from {table} where {condition}at <= $1 order by at desc limit 1 offset $2",  # noqa: S608  constants
        (until, SEARCHED - 1, *values),
    )
    return instant(int(rows[0][0])) if rows else None


def _search(wanted: RefusalFilter, limit: int, before: tuple[int, str]) -> Query[list[Refusal]]:
    conditions, values = _conditions(wanted)
    if wanted.emaid is not None:
        own = f"emaid = {_add(values, (str(wanted.emaid),))} and at <= {_add(values, (before[0],))}"
        if wanted.since is not None:
            own += f" and at >= {_add(values, (microseconds(wanted.since),))}"
        conditions.append(f"r.id in (select refusal_id from refusal_contract where {own})")  # noqa: S608  placeholders
    rows = yield _page(conditions, values, limit, before, few=wanted.emaid is not None)
    found = [_read(row) for row in rows]
    return (yield from _with_contracts(found))


@long_read
def search_of_vehicles(
    wmis: Iterable[str], client_id: str, wanted: RefusalFilter, limit: int, before: tuple[int, str] = FIRST
) -> Query[list[Refusal]]:
    """The records about vehicles of an OEM: of requests by vehicles, and of its own. wmis: at least one."""
    conditions, values = _conditions(wanted)
    conditions.append(f"r.wmi in ({_add(values, sorted(wmis))})")
    conditions.append(f"(r.digest is not null or r.client_id = {_add(values, (client_id,))})")
    rows = yield _page(conditions, values, limit, before)
    return [_read(row) for row in rows]


@long_read
def search_of_contracts(
    providers: Iterable[str], wanted: RefusalFilter, limit: int, before: tuple[int, str] = FIRST
) -> Query[list[Refusal]]:
    """The records that concern contracts of an eMSP, each with these contracts only. providers: at least one."""
    conditions, values = _conditions(wanted)
    own = f"provider_id in ({_add(values, sorted(providers))}) and concerned = 1"
    if wanted.emaid is not None:
        own += f" and emaid = {_add(values, (str(wanted.emaid),))}"
    conditions.append(f"r.id in (select refusal_id from refusal_contract where {own})")  # noqa: S608  placeholders
    rows = yield _page(conditions, values, limit, before)
    found = yield from _with_contracts([_read(row) for row in rows])
    owned = frozenset(providers)
    return [_with(each, tuple(emaid for emaid in each.concerned if emaid.provider in owned)) for each in found]


def erase(named: EMAID | PCID) -> Query[int]:
    """Remove every record that names a contract or a vehicle. Returns how many.

    Sentences contain ids in canonical form only; "_" in one finds more than wanted.
    """
    column = "pcid" if isinstance(named, PCID) else "emaid"
    rows = yield (
        f"delete from refusal where {column} = $1 or reason like $2 "  # noqa: S608  one of two columns
        "or id in (select refusal_id from refusal_contract where emaid = $1) returning id",
        (str(named), f"%{named}%"),
    )
    yield from _remove_contracts(row[0] for row in rows)
    return len(rows)


@long_write
def remove_all() -> Query[None]:
    """Remove every record."""
    yield "delete from refusal_contract", ()
    yield "delete from refusal", ()


def _conditions(wanted: RefusalFilter) -> tuple[list[str], list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []
    if wanted.id is not None:
        conditions.append(f"r.id in ({_add(values, ids_of_trace(wanted.id))})")
    # The records that a page searches are those of one index; "||" keeps the planner from using another one.
    driving, _ = _driving(replace(wanted, emaid=None))
    client_id, code = ("r.{} =" if driving in ("", name) else "r.{} || '' =" for name in ("client_id", "code"))
    for condition, value in (
        ("r.pcid =", None if wanted.pcid is None else str(wanted.pcid)),
        (client_id.format("client_id"), wanted.client_id),
        (code.format("code"), wanted.code),
        ("r.dialect =", wanted.dialect),
        ("r.edition =", wanted.edition),
        ("r.at >=", None if wanted.since is None else microseconds(wanted.since)),
        ("r.at <=", None if wanted.until is None else microseconds(wanted.until)),
    ):
        if value is not None:
            conditions.append(f"{condition} {_add(values, (value,))}")
    return conditions, values


def _add(values: list[Any], more: Iterable[Any]) -> str:
    """Append values. Returns their placeholders, separated by commas."""
    places = []
    for value in more:
        values.append(value)
        places.append(f"${len(values)}")
    return ", ".join(places)


def _page(
    conditions: list[str], values: list[Any], limit: int, before: tuple[int, str], *, few: bool = False
) -> tuple[str, Row]:
    """few: the conditions find few records, to be sorted; "+" keeps the planner from walking the index of the time."""
    at, id_, time = _add(values, (before[0],)), _add(values, (before[1],)), "+r.at" if few else "r.at"
    conditions = [*conditions, f"{time} <= {at}", f"(r.at < {at} or r.id < {id_})"]
    statement = (
        f"select {_SELECT} from refusal r where {' and '.join(conditions)} "  # noqa: S608  conditions are ours
        f"order by {time} desc, r.id desc limit {_add(values, (limit,))}"
    )
    return statement, tuple(values)


def _with_contracts(found: list[Refusal]) -> Query[list[Refusal]]:
    if not found:
        return found
    values: list[Any] = []
    rows = yield (
        f"select refusal_id, emaid from refusal_contract where refusal_id in ({_add(values, (r.id for r in found))}) "  # noqa: S608
        "and concerned = 1 order by emaid",
        tuple(values),
    )
    concerned: dict[str, list[EMAID]] = {}
    for id_, emaid in rows:
        concerned.setdefault(id_, []).append(EMAID(emaid))
    return [_with(each, tuple(concerned.get(each.id, ()))) for each in found]


def _remove_contracts(ids: Iterable[str]) -> Query[None]:
    wanted = sorted(ids)
    for start in range(0, len(wanted), PORTION):
        values: list[Any] = []
        places = _add(values, wanted[start : start + PORTION])
        yield f"delete from refusal_contract where refusal_id in ({places})", tuple(values)  # noqa: S608  placeholders


def _with(refusal: Refusal, concerned: tuple[EMAID, ...]) -> Refusal:
    return replace(refusal, concerned=concerned)


def _row(refusal: Refusal) -> Row:
    pcid, emaid = refusal.pcid, refusal.emaid
    return (
        refusal.id, microseconds(refusal.at), refusal.client_id, refusal.operation, refusal.dialect, refusal.status,
        refusal.edition, None if pcid is None else str(pcid), None if pcid is None else str(pcid.wmi),
        None if emaid is None else str(emaid), refusal.digest, refusal.code, refusal.check, refusal.reason,
        refusal.request,
    )  # fmt: skip


def _contract_rows(refusal: Refusal) -> Iterator[Row]:
    at = microseconds(refusal.at)
    concerned = frozenset(refusal.concerned)
    asked = () if refusal.emaid is None else (refusal.emaid,)
    for emaid in sorted({*refusal.concerned, *refusal.named, *asked}):
        yield refusal.id, str(emaid), str(emaid.provider), int(emaid in concerned), at


def _read(row: Row) -> Refusal:
    id_, at, client_id, operation, dialect, status, edition, pcid, _, emaid, digest, code, check, reason, request = row
    return Refusal(
        id_, instant(at), client_id, operation, dialect, status,
        edition, None if pcid is None else PCID(pcid), None if emaid is None else EMAID(emaid), digest, code, check,
        reason, None if request is None else bytes(request),
    )  # fmt: skip


def _list(number: int) -> str:
    return ", ".join(f"${place}" for place in range(1, number + 1))


def _places(rows: int, columns: int) -> str:
    return ", ".join(
        "(" + ", ".join(f"${columns * row + column}" for column in range(1, columns + 1)) + ")" for row in range(rows)
    )
