"""Queries for refused deliveries and their reasons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ccp.ids import EMAID, PCID
from ccp.server.storage.engine.query import Query, Row, long_read, long_write, retryable
from ccp.server.storage.queries.vehicle_lock import microseconds

MAX_ROWS_OF_CALLER: Final = 10_000
MAX_ROWS: Final = 1_000_000
"""Rows of all callers. Beyond that each caller keeps its share; a caller with fewer rows loses none."""
PORTION: Final = 500
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

    id: trace id. client_id: the caller: a CPO, another pool, or the OEM that fetched a contract. edition: namespace of
    the message. pcid: as far as the request could be read. emaid: that the caller asked for. digest: SHA-256 of the
    vehicle's message, hexadecimal. code: see `ccp.error_codes`. check: the failed check. request: the message, EXI, if
    it is kept. concerned: the vehicle's contracts that could not be delivered. named: other EMAIDs in a kept request.
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
    def cursor(self) -> tuple[int, str]:
        """The place of the record in lists, which are newest first."""
        return microseconds(self.at), self.id


@dataclass(frozen=True, slots=True)
class RefusalFilter:
    """Which records to list; None does not restrict. since, until: both inclusive."""

    id: str | None = None
    pcid: PCID | None = None
    emaid: EMAID | None = None
    client_id: str | None = None
    code: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@retryable
def record(found: Sequence[Refusal]) -> Query[None]:
    """Store records. One that is stored already is not changed."""
    yield (
        f"insert into refusal ({', '.join(_COLUMNS)}) values {_places(len(found), len(_COLUMNS))} "  # noqa: S608
        "on conflict (id) do nothing",
        tuple(value for each in found for value in _row(each)),
    )
    contracts = [row for each in found for row in _contract_rows(each)]
    for start in range(0, len(contracts), PORTION):
        part = contracts[start : start + PORTION]
        yield (
            f"insert into refusal_contract (refusal_id, emaid, provider_id, concerned, at) "  # noqa: S608  places
            f"values {_places(len(part), 5)} on conflict (refusal_id, emaid) do nothing",
            tuple(value for row in part for value in row),
        )


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
    conditions, values = _conditions(wanted)
    if wanted.emaid is not None:
        values.append(str(wanted.emaid))
        place = f"${len(values)}"
        conditions.append(
            f"(r.emaid = {place} or r.id in (select refusal_id from refusal_contract where emaid = {place}))"  # noqa: S608
        )
    rows = yield _page(conditions, values, limit, before)
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
    for condition, value in (
        ("r.id =", wanted.id),
        ("r.pcid =", None if wanted.pcid is None else str(wanted.pcid)),
        ("r.client_id =", wanted.client_id),
        ("r.code =", wanted.code),
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


def _page(conditions: list[str], values: list[Any], limit: int, before: tuple[int, str]) -> tuple[str, Row]:
    at, id_ = _add(values, (before[0],)), _add(values, (before[1],))
    conditions = [*conditions, f"(r.at < {at} or (r.at = {at} and r.id < {id_}))"]
    statement = (
        f"select {_SELECT} from refusal r where {' and '.join(conditions)} "  # noqa: S608  conditions are ours
        f"order by r.at desc, r.id desc limit {_add(values, (limit,))}"
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
    values = {name: getattr(refusal, name) for name in Refusal.__slots__}
    return Refusal(**{**values, "concerned": concerned})


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
    for emaid in sorted({*refusal.concerned, *refusal.named}):
        yield refusal.id, str(emaid), str(emaid.provider), int(emaid in concerned), at


def _read(row: Row) -> Refusal:
    id_, at, client_id, operation, dialect, status, edition, pcid, _, emaid, digest, code, check, reason, request = row
    return Refusal(
        id_, datetime.fromtimestamp(0, UTC) + timedelta(microseconds=at), client_id, operation, dialect, status,
        edition, None if pcid is None else PCID(pcid), None if emaid is None else EMAID(emaid), digest, code, check,
        reason, None if request is None else bytes(request),
    )  # fmt: skip


def _places(rows: int, columns: int) -> str:
    return ", ".join(
        "(" + ", ".join(f"${columns * row + column}" for column in range(1, columns + 1)) + ")" for row in range(rows)
    )
