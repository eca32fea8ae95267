"""Queries that find what can be purged, in bounded portions (`contract_portions`), and that purge it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from ccp.ids import EMAID, PCID
from ccp.server.domain.subscriptions import UndeliverableReason
from ccp.server.storage.engine.query import Query, long_read, retryable
from ccp.server.storage.queries.contract_notices import report_revoked
from ccp.server.storage.queries.contract_portions import (
    FIRST_CONTRACT,
    PORTION,
    Cursor,
    Portion,
    following,
    portion,
)
from ccp.server.storage.queries.contracts import Removed, withdraw
from ccp.server.storage.queries.vehicle_lock import Now, microseconds

FIRST_VEHICLE: Final[Cursor] = (-1, "")


@long_read
def expired(before: datetime, after: Cursor = FIRST_CONTRACT, limit: int = PORTION) -> Query[Portion]:
    """Contracts with a variant that expired before a time."""
    rows = yield (
        "select valid_to, emaid from contract where valid_to < $1 and (valid_to, emaid) > ($2, $3) "
        "order by valid_to, emaid limit $4",
        (int(before.timestamp()), *after, limit),
    )
    return portion((row[1] for row in rows), rows, limit)


def purge_reason(emaid: EMAID, before: datetime) -> Query[tuple[PCID, str] | None]:
    """The vehicle of a contract whose variants are all expired or revoked, and why; None for any other contract."""
    claims = yield "select pcid from emaid_claim where emaid = $1", (emaid,)
    if not claims:
        return None
    variants = yield (
        "select c.valid_to, e.serial from contract c left join evidence e on e.issuer = c.certificate_issuer "
        "and e.serial = c.certificate_serial and e.status = 'revoked' where c.pcid = $1 and c.emaid = $2",
        (claims[0][0], emaid),
    )
    cutoff = int(before.timestamp())
    if not all(valid_to < cutoff or serial is not None for valid_to, serial in variants):
        return None
    reason = "revoked" if any(serial is not None for _, serial in variants) else "expired"
    return PCID(claims[0][0]), reason


@retryable
def purge(emaid: EMAID, before: datetime, now: Now) -> Query[Removed | None]:
    """Remove a contract whose variants are all expired or revoked, checked under its lock. Returns None otherwise."""
    yield "select pcid from emaid_claim where emaid = $1 for update", (emaid,)
    found = yield from purge_reason(emaid, before)
    if found is None:
        return None
    if found[1] == UndeliverableReason.REVOKED:
        yield from report_revoked(emaid, now)
    removed = yield from withdraw(emaid, now)
    return removed._replace(reason=found[1])


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
    return IdleVehicles([(pcid, rev) for pcid, rev in found], following(rows, limit))


@retryable
def remove_vehicles(vehicles: Sequence[tuple[str, int]]) -> Query[int]:
    """Delete the vehicles that `idle_vehicles` found. Returns how many.

    A publication or an event since then has incremented the revision, and the row stays.
    """
    count = 0
    for pcid, rev in sorted(vehicles):
        count += len((yield "delete from vehicle where pcid = $1 and rev = $2 returning rev", (pcid, rev)))
    return count
