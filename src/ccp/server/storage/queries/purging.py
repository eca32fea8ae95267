"""Queries that find what can be purged, in bounded portions.

Each portion examines at most `limit` rows of an index and returns the cursor of the next portion, so its time does not
depend on the number of contracts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias

from ccp.ids import EMAID
from ccp.server.storage.engine.query import Query, Row, long_read, retryable
from ccp.server.storage.queries.contracts import microseconds

PORTION: Final = 500

Cursor: TypeAlias = Row
"""The key of the last row that a portion examined."""

FIRST_CONTRACT: Final[Cursor] = (-1, "")
FIRST_CERTIFICATE: Final[Cursor] = ("", "")
FIRST_VEHICLE: Final[Cursor] = (-1, "")


class Portion(NamedTuple):
    """Candidates. following: cursor of the next portion; None after the last one."""

    emaids: list[EMAID]
    following: Cursor | None


@long_read
def expired(before: datetime, after: Cursor = FIRST_CONTRACT, limit: int = PORTION) -> Query[Portion]:
    """Contracts with a variant that expired before a time."""
    rows = yield (
        "select valid_to, emaid from contract where valid_to < $1 and (valid_to, emaid) > ($2, $3) "
        "order by valid_to, emaid limit $4",
        (int(before.timestamp()), *after, limit),
    )
    return Portion(_each(row[1] for row in rows), _last(rows, limit))


@long_read
def revoked(after: Cursor = FIRST_CERTIFICATE, limit: int = PORTION) -> Query[Portion]:
    """Contracts whose certificate is revoked. A portion counts revoked certificates, few of which are of contracts."""
    rows = yield (
        "select issuer, serial from evidence where status = 'revoked' and (issuer, serial) > ($1, $2) "
        "order by issuer, serial limit $3",
        (*after, limit),
    )
    if not rows:
        return Portion([], None)
    found = yield (
        "select c.emaid from evidence e join contract c "
        "on c.certificate_issuer = e.issuer and c.certificate_serial = e.serial "
        "where e.status = 'revoked' and (e.issuer, e.serial) > ($1, $2) and (e.issuer, e.serial) <= ($3, $4)",
        (*after, *rows[-1]),
    )
    return Portion(_each(row[0] for row in found), _last(rows, limit))


class IdleVehicles(NamedTuple):
    """PCID and revision of vehicles. following: cursor of the next portion."""

    vehicles: list[tuple[str, int]]
    following: Cursor | None


@long_read
def idle_vehicles(before: datetime, after: Cursor = FIRST_VEHICLE, limit: int = PORTION) -> Query[IdleVehicles]:
    """Vehicle rows without contracts and events, which only record a provisioning event before a time."""
    rows = yield (
        "select provisioned_at, pcid from vehicle where provisioned_at < $1 and (provisioned_at, pcid) > ($2, $3) "
        "order by provisioned_at, pcid limit $4",
        (microseconds(before), *after, limit),
    )
    if not rows:
        return IdleVehicles([], None)
    found = yield (
        "select v.pcid, v.rev from vehicle v "
        "where (v.provisioned_at, v.pcid) > ($1, $2) and (v.provisioned_at, v.pcid) <= ($3, $4) "
        "and v.default_provider is null and not exists (select 1 from contract c where c.pcid = v.pcid) "
        "and not exists (select 1 from outbox o where o.pcid = v.pcid) "
        "and not exists (select 1 from delivery d where d.pcid = v.pcid) order by v.provisioned_at, v.pcid",
        (*after, *rows[-1]),
    )
    return IdleVehicles([(pcid, rev) for pcid, rev in found], _last(rows, limit))


@retryable
def remove_vehicles(vehicles: Sequence[tuple[str, int]]) -> Query[int]:
    """Delete the vehicles that `idle_vehicles` found. Returns how many.

    A publication or an event since then has incremented the revision, and the row stays.
    """
    count = 0
    for pcid, rev in sorted(vehicles):
        count += len((yield "delete from vehicle where pcid = $1 and rev = $2 returning rev", (pcid, rev)))
    return count


def _each(emaids: Iterable[str]) -> list[EMAID]:
    return [EMAID(emaid) for emaid in dict.fromkeys(emaids)]


def _last(rows: Sequence[Row], limit: int) -> Cursor | None:
    return tuple(rows[-1]) if len(rows) == limit else None
