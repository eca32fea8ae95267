"""Queries that find what is to be purged, in bounded portions.

Each portion looks at no more than `limit` rows of the index that it follows, whatever it finds there, and says where
the next one begins. So none of them takes long, however many contracts there are.
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
"""The key of the last row that a portion looked at."""

FIRST_CONTRACT: Final[Cursor] = (-1, "")
FIRST_CERTIFICATE: Final[Cursor] = ("", "")
FIRST_VEHICLE: Final[Cursor] = (-1, "")


class Portion(NamedTuple):
    """Contracts to look at, and where the next portion begins; None after the last one."""

    emaids: list[EMAID]
    following: Cursor | None


@long_read
def expired(before: datetime, after: Cursor = FIRST_CONTRACT, limit: int = PORTION) -> Query[Portion]:
    """Contracts with a variant that had expired by then."""
    rows = yield (
        "select valid_to, emaid from contract where valid_to < $1 and (valid_to, emaid) > ($2, $3) "
        "order by valid_to, emaid limit $4",
        (int(before.timestamp()), *after, limit),
    )
    return Portion(_each(row[1] for row in rows), _last(rows, limit))


@long_read
def revoked(after: Cursor = FIRST_CERTIFICATE, limit: int = PORTION) -> Query[Portion]:
    """Contracts whose certificate is revoked. The portion is one of revoked certificates, of which few are ours."""
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
    """PCID and revision of each, and where the next portion begins."""

    vehicles: list[tuple[str, int]]
    following: Cursor | None


@long_read
def idle_vehicles(before: datetime, after: Cursor = FIRST_VEHICLE, limit: int = PORTION) -> Query[IdleVehicles]:
    """Rows that only say that a provisioning event came, before then, for a vehicle without contracts."""
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
    """Remove rows as `idle_vehicles` has found them. Returns how many.

    Whatever made one of them useful since then, a publication or an event, has counted its revision.
    """
    count = 0
    for pcid, rev in sorted(vehicles):
        count += len((yield "delete from vehicle where pcid = $1 and rev = $2 returning rev", (pcid, rev)))
    return count


def _each(emaids: Iterable[str]) -> list[EMAID]:
    return [EMAID(emaid) for emaid in dict.fromkeys(emaids)]


def _last(rows: Sequence[Row], limit: int) -> Cursor | None:
    return tuple(rows[-1]) if len(rows) == limit else None
