"""Lock on a vehicle's row, and the time stamp of a change under it.

Every change of a vehicle's contracts locks the vehicle first. The lock increments the vehicle's revision and stamps the
change: the stamp is the current time, and later than every earlier stamp of the vehicle. So the events of a vehicle
have times in the order of their revisions, on whichever machine and in whichever order the requests arrived.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, TypeAlias

from ccp.ids import EMAID, PCID, ProviderId
from ccp.server.domain.default_contracts import Default
from ccp.server.storage.engine.query import Query, Row, read_committed

Now: TypeAlias = datetime | Callable[[], datetime]
"""The current time, or a clock that is read under the lock."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_WAITED: Final = (
    10_000  # Microseconds. A longer wait means that another transaction held the lock, so the clock is read again.
)


def microseconds(time: datetime) -> int:
    """A time as it is stored: microseconds since 1970."""
    return (time - _EPOCH) // _MICROSECOND


def instant(stored: int) -> datetime:
    """The time of a stored value."""
    return _EPOCH + stored * _MICROSECOND


def read_clock(now: Now) -> datetime:
    """The current time."""
    return now() if callable(now) else now


class LockedVehicle(NamedTuple):
    """A vehicle whose lock this transaction holds. rev: revision of the change and its event. at: its stamp.

    provisioned_at: stamp of the last provisioning event that invalidated contracts of the vehicle; None without one.
    contested: contracts that contest the vehicle's automatic default, and whose events were written.
    """

    rev: int
    at: datetime
    default: Default
    provisioned_at: datetime | None
    contested: frozenset[EMAID] = frozenset()


# A stamp more than a day ahead comes from a wrong clock and is ignored.
STAMP: Final = "case when stamped_at >= {now} and stamped_at < {now} + 86400000000 then stamped_at + 1 else {now} end"
_LOCK: Final = f"""
insert into vehicle (pcid, rev, default_emaid, stamped_at) values ($1, 1, null, $2)
on conflict (pcid) do update set rev = vehicle.rev + 1,
    stamped_at = {STAMP.replace("stamped_at", "vehicle.stamped_at").format(now="$2")}
returning rev, stamped_at, default_emaid, default_provider, default_chosen, provisioned_at, contested
"""  # noqa: S608  constants


def lock_vehicles(pcids: Iterable[PCID], now: Now) -> Query[dict[PCID, LockedVehicle]]:
    """Lock vehicles in order of their PCIDs; missing rows are created."""
    vehicles = {}
    for pcid in sorted(pcids):
        vehicles[pcid] = yield from lock_vehicle(pcid, now)
    return vehicles


def lock_vehicle(pcid: PCID, now: Now) -> Query[LockedVehicle]:
    """Lock a vehicle. A change with several events locks it once for each, since every event has its own revision."""
    asked = microseconds(read_clock(now))
    rows = yield _LOCK, (pcid, asked)
    rev, stamp, emaid, provider, chosen, provisioned, contested = rows[0]
    if callable(now) and (late := microseconds(now())) > max(stamp, asked + _WAITED):
        stamp = late
        yield "update vehicle set stamped_at = $1 where pcid = $2", (stamp, pcid)
    default = _default(emaid, provider, chosen)
    return LockedVehicle(
        rev,
        instant(stamp),
        default,
        None if provisioned is None else instant(provisioned),
        frozenset() if contested is None else frozenset(map(EMAID, json.loads(contested))),
    )


def read_vehicle(pcid: PCID) -> Query[tuple[Default, datetime | None]]:
    """The default and `provisioned_at` of a vehicle, without a lock. The vehicle may have no row."""
    rows = yield (
        "select default_emaid, default_provider, default_chosen, provisioned_at from vehicle where pcid = $1",
        (pcid,),
    )
    if not rows:
        return Default(), None
    emaid, provider, chosen, provisioned = rows[0]
    return _default(emaid, provider, chosen), None if provisioned is None else instant(provisioned)


class VehicleState(NamedTuple):
    """What is stored about a vehicle. changed_at: stamp of its last change, None in rows of an older release.

    provisioned_at, contested: see `LockedVehicle`.
    """

    default: Default
    changed_at: datetime | None
    provisioned_at: datetime | None
    contested: frozenset[EMAID]


@read_committed
def find_state(pcid: PCID) -> Query[VehicleState | None]:
    """The state of a vehicle, without a lock; None for a vehicle without a row."""
    rows = yield (
        "select default_emaid, default_provider, default_chosen, stamped_at, provisioned_at, contested from vehicle "
        "where pcid = $1",
        (pcid,),
    )
    if not rows:
        return None
    emaid, provider, chosen, stamped, provisioned, contested = rows[0]
    return VehicleState(
        _default(emaid, provider, chosen),
        None if stamped is None else instant(stamped),
        None if provisioned is None else instant(provisioned),
        frozenset() if contested is None else frozenset(map(EMAID, json.loads(contested))),
    )


class ContestedVehicle(NamedTuple):
    """A vehicle with contracts of several providers, without a choice of its manufacturer. contested: as above."""

    pcid: PCID
    default: Default
    changed_at: datetime | None
    contested: frozenset[EMAID]


@read_committed
def list_contested(after: str, limit: int) -> Query[list[ContestedVehicle]]:
    """Contested vehicles by PCID, beginning after one. limit: of vehicles."""
    rows = yield (
        "select pcid, default_emaid, default_provider, default_chosen, stamped_at, contested from vehicle "
        "where contested is not null and pcid > $1 order by pcid limit $2",
        (after, limit),
    )
    return [
        ContestedVehicle(
            PCID(pcid),
            _default(emaid, provider, chosen),
            None if stamped is None else instant(stamped),
            frozenset(map(EMAID, json.loads(contested))),
        )
        for pcid, emaid, provider, chosen, stamped, contested in rows
    ]


def _default(emaid: str | None, provider: str | None, chosen: object) -> Default:
    default = Default(
        None if emaid is None else EMAID(emaid),
        None if provider is None else ProviderId(provider),
        bool(chosen),
    )
    if default.emaid is not None and default.provider is None:
        default = Default(default.emaid, default.emaid.provider)  # Written by the previous release.
    return default


def put_default(pcid: PCID, default: Default, contested: Collection[EMAID] = ()) -> tuple[str, Row]:
    """Store the default of a locked vehicle, and the contracts that contest it. Contract rows repeat the default.

    See `flag_default`. contested: none unless it is given, since a new default ends the contest.
    """
    update = (
        "update vehicle set default_emaid = $1, default_provider = $2, default_chosen = $3, contested = $4 "
        "where pcid = $5"
    )
    listed = json.dumps(sorted(contested)) if contested else None
    return update, (default.emaid, default.provider, default.chosen, listed, pcid)


def flag_default(pcid: PCID, default: Default) -> tuple[str, Row]:
    """Update the default flag of the vehicle's contracts."""
    update = "update contract set is_default = (emaid = $1) where pcid = $2"
    return update, (default.emaid or "", pcid)
