"""Queries for vehicles and their contracts.

Writers take their locks in one order (the claim on the EMAID, the vehicles sorted by PCID, then everything else), so
they cannot deadlock, and they read a vehicle only after they hold its lock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from ccp.errors import MismatchError, NotFound
from ccp.errors.codes import ErrorCode
from ccp.ids import EMAID, PCID, Fingerprint, Namespace, ProviderId
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.default_contracts import (
    Default,
    VehicleRules,
    check_capacity,
    contesting_providers,
    default_after_publication,
)
from ccp.server.domain.subscriptions import EventKind, UndeliverableReason
from ccp.server.storage.engine.query import Query, Row, batchable, read_committed, retryable
from ccp.server.storage.queries.certificate_refs import dump_refs, load_refs
from ccp.server.storage.queries.unknown_values import warn
from ccp.server.storage.queries.vehicle_lock import (
    LockedVehicle,
    Now,
    flag_default,
    lock_vehicle,
    lock_vehicles,
    put_default,
    read_clock,
    read_vehicle,
)
from ccp.server.storage.queries.vehicle_lock import instant as instant
from ccp.server.storage.queries.vehicle_lock import microseconds as microseconds

_COLUMNS = (
    "emaid, pcid, namespace, root_fingerprint, root_serial, root_dn, valid_from, valid_to, certificate, response, "
    "remaining_from_end, metadata, created_at, updated_at, is_default, "
    "certificates, provisioning_key"
)
_SELECT_VARIANTS = f"select {_COLUMNS} from contract where pcid = $1"  # noqa: S608  constants
# The vehicle cannot read other namespaces, so their messages and keys are not loaded; PostgreSQL stores both out of
# line.
_SELECT_FOR_DELIVERY = _SELECT_VARIANTS.replace(
    _COLUMNS,
    ", ".join(
        f"case when namespace = $2 then {column} end" if column in ("response", "metadata", "certificates") else column
        for column in _COLUMNS.split(", ")
    ),
)
_SELECT_KEYS = "select emaid, namespace, root_fingerprint from contract where pcid = $1"
_UPSERT_VARIANT = f"""
insert into contract ({_COLUMNS}, certificate_issuer, certificate_serial, rev, waited)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)
on conflict (pcid, namespace, emaid, root_fingerprint) do update set
    root_serial = excluded.root_serial, root_dn = excluded.root_dn, valid_from = excluded.valid_from,
    valid_to = excluded.valid_to, certificate = excluded.certificate, response = excluded.response,
    remaining_from_end = excluded.remaining_from_end, metadata = excluded.metadata,
    updated_at = excluded.updated_at, rev = excluded.rev,
    is_default = excluded.is_default, certificates = excluded.certificates,
    provisioning_key = excluded.provisioning_key, certificate_issuer = excluded.certificate_issuer,
    certificate_serial = excluded.certificate_serial, waited = excluded.waited, undeliverable = null,
    expiring_days = case when contract.valid_to = excluded.valid_to then contract.expiring_days end
"""  # noqa: S608
_NAMESPACES = {namespace.value: namespace for namespace in Namespace}
_SKEW = timedelta(minutes=5)
"""Maximum difference between the clocks of the pool's machines; a later time comes from a wrong clock."""


@dataclass(frozen=True, slots=True)
class Published:
    """Result of a publication.

    created: the contract is new to the vehicle. moved_from: the vehicle that it was bound to before. replaced: the same
    variant existed. at: the time of the change, as in the event and the contract. default_provider,
    contesting_providers: for a contested vehicle (`ccp.server.domain.default_contracts`), the provider of its default
    and the others.
    """

    created: bool
    moved_from: PCID | None
    replaced: bool = False
    at: datetime = field(default=instant(0), compare=False)
    default_provider: ProviderId | None = field(default=None, compare=False)
    contesting_providers: frozenset[ProviderId] = field(default=frozenset(), compare=False)


class Removed(NamedTuple):
    """A removed contract. at: the time of the change. reason: of a purge, "expired" or "revoked"."""

    pcid: PCID
    at: datetime
    reason: str | None = None


@batchable
def by_vehicle(pcid: PCID) -> Query[list[SignedContract]]:
    """Every variant of every contract of a vehicle."""
    rows = yield _SELECT_VARIANTS, (pcid,)
    return _known(rows)


@batchable
def for_delivery(pcid: PCID, namespace: Namespace) -> Query[list[SignedContract]]:
    """Every variant of a vehicle's contracts; those of other namespaces without response, metadata and certificates."""
    rows = yield _SELECT_FOR_DELIVERY, (pcid, namespace)
    return _known(rows)


@batchable
def by_vehicle_and_emaid(pcid: PCID, emaid: EMAID) -> Query[list[SignedContract]]:
    """Every variant of one contract of a vehicle; none if it is unknown or bound to another vehicle."""
    rows = yield _SELECT_VARIANTS + " and emaid = $2", (pcid, emaid)
    return _known(rows)


@batchable
def by_emaid(emaid: EMAID) -> Query[list[SignedContract]]:
    """Every variant of one contract; none if it is unknown."""
    # The contract may move between the two statements, so the search is repeated.
    for _ in range(10):
        claims = yield "select pcid from emaid_claim where emaid = $1", (emaid,)
        if not claims:
            break
        rows = yield _SELECT_VARIANTS + " and emaid = $2", (claims[0][0], emaid)
        if rows:
            return _known(rows)
    return []


@read_committed
def find_vehicle(emaid: EMAID) -> Query[PCID | None]:
    """The vehicle that a contract is bound to; None if it is unknown."""
    claims = yield "select pcid from emaid_claim where emaid = $1", (emaid,)
    return PCID(claims[0][0]) if claims else None


@retryable
def publish(
    contract: SignedContract, now: Now, rules: VehicleRules = VehicleRules(), *, wanted: bool | None = None
) -> Query[Published]:
    """Store a variant: as a new contract, in place of the same variant, or moved here from another vehicle.

    contract: `created_at` is the start of its publication; the time of the change is stored. wanted: see
    `ccp.server.domain.default_contracts.default_after_publication`, which decides whether the contract becomes the
    default. Raises LimitExceeded, and MismatchError if the vehicle's provisioning certificate changed after the start
    of the publication.
    """
    emaid, pcid = contract.emaid, contract.pcid
    holder = yield from _claim(emaid, pcid)
    if holder != pcid:
        vehicles = yield from lock_vehicles((holder, pcid), now)
        yield from remove(emaid, holder, vehicles[holder])
        yield "update emaid_claim set pcid = $1 where emaid = $2", (pcid, emaid)
        vehicle = vehicles[pcid]
    else:
        vehicle = yield from lock_vehicle(pcid, now)
    if vehicle.provisioned_at is not None:
        _check_provisioning(vehicle.provisioned_at, contract.created_at, read_clock(now))
    stored = yield _SELECT_KEYS, (pcid,)
    others, created = _check_stored(stored, vehicle.default, emaid, rules)
    before = vehicle.default
    if (
        others
        and before.emaid != emaid
        and (created or before.emaid is None or before.emaid.provider == emaid.provider)
    ):
        # Expired and revoked contracts do not count, so that the result does not depend on the time of a purge.
        others &= yield from _find_valid(pcid, vehicle.at)
        if before.emaid not in others:
            before = replace(before, emaid=None)
    after = default_after_publication(
        before, emaid, first=created and not others, automatic=rules.automatic_default, wanted=wanted
    )
    default = after if after != before else vehicle.default
    contesting = contesting_providers(default, (*others, emaid))
    contested = frozenset(other for other in (*others, emaid) if other.provider in contesting)
    if after != before or contested != vehicle.contested:
        yield put_default(pcid, default, contested)
    if after != before and stored:
        yield flag_default(pcid, default)
    yield (
        _UPSERT_VARIANT,
        (
            emaid, pcid, contract.namespace, contract.root_fingerprint, f"{contract.root_serial:x}",
            contract.root_dn, int(contract.valid_from.timestamp()), int(contract.valid_to.timestamp()),
            contract.certificate, contract.response, contract.remaining_from_end, contract.metadata,
            microseconds(vehicle.at), microseconds(vehicle.at), default.emaid == emaid,
            None if contract.certificates is None else dump_refs(contract.certificates), contract.provisioning_key,
            *_leaf(contract), vehicle.rev, max(0, microseconds(vehicle.at) - microseconds(contract.created_at)),
        ),
    )  # fmt: skip
    kind = EventKind.CREATED if created else EventKind.UPDATED
    members = {"contested": True} if contesting else {}
    yield event(kind, emaid, pcid, vehicle, [contract.namespace], **members)
    if contested:
        yield from _report_contest(contract, vehicle, default, contested, stored, now)
    same = (emaid, contract.namespace, contract.root_fingerprint)
    replaced = any((other, namespace, root) == same for other, namespace, root in stored)
    moved_from = holder if holder != pcid else None
    owner = default.emaid.provider if contesting and default.emaid else None
    return Published(created, moved_from, replaced, vehicle.at, owner, contesting)


def _report_contest(
    contract: SignedContract,
    vehicle: LockedVehicle,
    default: Default,
    contested: frozenset[EMAID],
    stored: list[Row],
    now: Now,
) -> Query[None]:
    """Events of a publication that contests its vehicle's default, for the OEM and for the providers that lose by it.

    vehicle: as locked before the publication. default, contested: the default now, and the contracts that contest it.
    Each provider and contract is reported once while it contests the default. A vehicle of ISO 15118-20 gets every
    contract, and one of ISO 15118-2 the only one of its edition; the others are undeliverable.
    """
    pcid = contract.pcid
    fresh = contested - vehicle.contested
    if {emaid.provider for emaid in fresh} - {emaid.provider for emaid in vehicle.contested}:
        emaid = contract.emaid if contract.emaid in fresh else min(fresh)
        locked = yield from lock_vehicle(pcid, now)
        yield event(EventKind.CONTESTED, emaid, pcid, locked, [contract.namespace], contested=True)
    had = {EMAID(emaid) for emaid, namespace, _ in stored if namespace == Namespace.ISO2}
    has = had | ({contract.emaid} if contract.namespace is Namespace.ISO2 else set())
    if default.emaid not in has and len(has) == 1:
        return
    was_only_one = default.emaid not in had and len(had) == 1
    reported = frozenset() if was_only_one else (contested - fresh) & had
    for emaid in sorted((contested & has) - reported):
        locked = yield from lock_vehicle(pcid, now)
        reason = UndeliverableReason.CONTESTED.value
        yield event(EventKind.UNDELIVERABLE, emaid, pcid, locked, [Namespace.ISO2], reason=reason)


def check_publication(emaid: EMAID, pcid: PCID, began: datetime, now: datetime, rules: VehicleRules) -> Query[str]:
    """Check what `publish` would refuse, by the stored state; reads only, without locks.

    began: start of the publication. Returns a sentence on what storing it would do, which names no other vehicle.
    Raises LimitExceeded, MismatchError.
    """
    default, provisioned_at = yield from read_vehicle(pcid)
    if provisioned_at is not None:
        _check_provisioning(provisioned_at, began, now)
    _, created = _check_stored((yield _SELECT_KEYS, (pcid,)), default, emaid, rules)
    if not created:
        return "The vehicle has the contract; the response is added, or replaces the one of its edition and root."
    if (yield from find_vehicle(emaid)) is not None:
        return "The contract moves to this vehicle; the one that has it now loses every response of it."
    return "The contract is new."


def _check_stored(stored: list[Row], default: Default, emaid: EMAID, rules: VehicleRules) -> tuple[set[EMAID], bool]:
    """The vehicle's other contracts, and whether this one is new to it. Raises LimitExceeded.

    stored: rows of `_SELECT_KEYS`.
    """
    others = {EMAID(other) for other, _, _ in stored if other != emaid}
    created = all(other != emaid for other, _, _ in stored)
    if created:
        check_capacity(default, emaid, others, rules)
    return others, created


def _check_provisioning(provisioned_at: datetime, began: datetime, now: datetime) -> None:
    """Refuse a contract that may be encrypted for a replaced provisioning certificate. Raises MismatchError.

    began: start of the publication.
    """
    if began <= provisioned_at < now + _SKEW:
        raise MismatchError(
            "The vehicle's provisioning certificate changed while the contract was being published; "
            "sign the contract for the current certificate and publish it again.",
            code=ErrorCode.PROVISIONING_CERTIFICATE_CHANGED,
        )


def _find_valid(pcid: PCID, now: datetime) -> Query[set[EMAID]]:
    """The vehicle's contracts that have a variant neither expired nor revoked."""
    rows = yield (
        "select distinct c.emaid from contract c left join evidence e on e.issuer = c.certificate_issuer "
        "and e.serial = c.certificate_serial and e.status = 'revoked' "
        "where c.pcid = $1 and c.valid_to >= $2 and e.serial is null",
        (pcid, int(now.timestamp())),
    )
    return {EMAID(emaid) for (emaid,) in rows}


@retryable
def withdraw(emaid: EMAID, now: Now) -> Query[Removed]:
    """Remove a contract with all its variants. Raises NotFound."""
    claims = yield "select pcid from emaid_claim where emaid = $1 for update", (emaid,)
    if not claims:
        raise NotFound("The contract for the given EMAID not found.", code=ErrorCode.CONTRACT_NOT_FOUND)
    pcid = PCID(claims[0][0])
    vehicle = yield from lock_vehicle(pcid, now)
    yield from remove(emaid, pcid, vehicle)
    yield "delete from emaid_claim where emaid = $1", (emaid,)
    return Removed(pcid, vehicle.at)


@retryable
def set_default(emaid: EMAID, pcid: PCID, now: Now) -> Query[datetime | None]:
    """Make a contract the vehicle's default by its OEM's choice.

    Returns the time of the change, None if the same choice was made before. Raises NotFound if the vehicle has no such
    contract.
    """
    claims = yield "select pcid from emaid_claim where emaid = $1 for update", (emaid,)
    if not claims or claims[0][0] != pcid:
        raise NotFound("The contract for the given EMAID and PCID not found.", code=ErrorCode.CONTRACT_NOT_FOUND)
    vehicle = yield from lock_vehicle(pcid, now)
    chosen = Default(emaid, emaid.provider, chosen=True)
    if vehicle.default == chosen:
        return None
    yield put_default(pcid, chosen)
    if vehicle.default.emaid != emaid:
        yield flag_default(pcid, chosen)
    return vehicle.at


def _claim(emaid: EMAID, pcid: PCID) -> Query[PCID]:
    """Lock the EMAID. Returns the vehicle that it is bound to, which is `pcid` if it was free."""
    # An update without a change: it locks the existing row, and never sees a half-finished deletion.
    insert = """
    insert into emaid_claim (emaid, pcid) values ($1, $2)
    on conflict (emaid) do update set pcid = emaid_claim.pcid returning pcid
    """
    claims = yield insert, (emaid, pcid)
    return PCID(claims[0][0])


def remove(emaid: EMAID, pcid: PCID, vehicle: LockedVehicle) -> Query[None]:
    """Remove a contract from a locked vehicle, with an event for its OEM. No other contract becomes the default.

    The caller changes the claim on the EMAID.
    """
    gone = yield "delete from contract where pcid = $1 and emaid = $2 returning namespace", (pcid, emaid)
    if vehicle.default.emaid == emaid:
        yield put_default(pcid, replace(vehicle.default, emaid=None))
    elif emaid in vehicle.contested:
        yield put_default(pcid, vehicle.default, vehicle.contested - {emaid})
    yield event(EventKind.DELETED, emaid, pcid, vehicle, {row[0] for row in gone})


def event(
    kind: EventKind,
    emaid: EMAID,
    pcid: PCID,
    vehicle: LockedVehicle,
    namespaces: Iterable[str],
    **members: object,
) -> tuple[str, Row]:
    """The event of a change of a contract.

    vehicle: locked for this event only. namespaces: of the changed variants. members: of the payload, besides the ids
    and the contract's data.
    """
    return event_at(kind, emaid, pcid, vehicle.rev, vehicle.at, namespaces, **members)


def event_at(
    kind: EventKind,
    emaid: EMAID,
    pcid: PCID,
    rev: int,
    stamp: datetime,
    namespaces: Iterable[str],
    **members: object,
) -> tuple[str, Row]:
    """As `event`, with the vehicle's revision and the stamp of this event."""
    insert = """
    insert into outbox (pcid, rev, kind, emaid, payload, created_at, lease_until, attempts)
    values ($1, $2, $3, $4, $5, $6, 0, 0)
    """
    payload: dict[str, object] = {"emaid": emaid, "pcid": pcid, "namespaces": sorted(namespaces)}
    if members:
        payload["members"] = members
    return insert, (pcid, rev, kind, emaid, json.dumps(payload), microseconds(stamp))


def _leaf(contract: SignedContract) -> tuple[str | None, str | None]:
    """Issuer and serial number of the contract certificate, which is first, to find revoked contracts."""
    if not contract.certificates:
        return None, None
    return contract.certificates[0].issuer, f"{contract.certificates[0].serial:x}"


def _known(rows: Iterable[Row]) -> list[SignedContract]:
    """Variants from rows. Rows of an edition that only a newer release knows are skipped."""
    return [_contract(row) for row in rows if row[2] in _NAMESPACES or _ignore(row[2])]


def _ignore(namespace: str) -> bool:
    warn("contract.namespace", namespace)
    return False


def _contract(row: Row) -> SignedContract:
    (emaid, pcid, namespace, fingerprint, serial, dn, valid_from, valid_to, certificate, response,
     remaining, metadata, created_at, updated_at, is_default, certificates, provisioning_key) = row  # fmt: skip
    return SignedContract(
        EMAID(emaid),
        PCID(pcid),
        _NAMESPACES[namespace],
        Fingerprint(fingerprint),
        int(serial, 16),
        dn,
        datetime.fromtimestamp(valid_from, UTC),
        datetime.fromtimestamp(valid_to, UTC),
        certificate,
        response or b"",
        remaining,
        metadata,
        instant(created_at),
        instant(updated_at),
        bool(is_default),
        None if certificates is None else load_refs(certificates),
        provisioning_key,
    )
