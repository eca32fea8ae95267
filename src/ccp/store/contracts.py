"""Questions about vehicles and their contracts.

Writers take their locks in one order (the EMAID's claim, then the vehicles sorted by PCID, then everything else), so
they cannot deadlock, and look at a vehicle only after they hold it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ccp.contracts import SignedContract
from ccp.errors import NotFound
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.pki.evidence import dump_keys, load_keys
from ccp.store.steps import Row, Steps, gathered, newest, repeatable
from ccp.store.unknown import warn
from ccp.subscriptions import EventKind

_COLUMNS = (
    "emaid, pcid, namespace, root_fingerprint, root_serial, root_dn, valid_from, valid_to, certificate, response, "
    "remaining_from_end, metadata, created_at, updated_at, is_default, "
    "certificates, provisioning_key"
)
_VARIANTS = f"select {_COLUMNS} from contract where pcid = $1"  # noqa: S608  columns are ours
# Of those that the vehicle cannot read neither message nor keys are needed; on a server both lie beside the row.
_WAITING = _VARIANTS.replace(
    _COLUMNS,
    ", ".join(
        f"case when namespace = $2 then {column} end" if column in ("response", "metadata", "certificates") else column
        for column in _COLUMNS.split(", ")
    ),
)
_ADD_VARIANT = f"""
insert into contract ({_COLUMNS}, certificate_issuer, certificate_serial, rev)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
on conflict (pcid, namespace, emaid, root_fingerprint) do update set
    root_serial = excluded.root_serial, root_dn = excluded.root_dn, valid_from = excluded.valid_from,
    valid_to = excluded.valid_to, certificate = excluded.certificate, response = excluded.response,
    remaining_from_end = excluded.remaining_from_end, metadata = excluded.metadata,
    updated_at = excluded.updated_at, rev = excluded.rev,
    is_default = excluded.is_default, certificates = excluded.certificates,
    provisioning_key = excluded.provisioning_key, certificate_issuer = excluded.certificate_issuer,
    certificate_serial = excluded.certificate_serial
"""  # noqa: S608
_LOCK_VEHICLE = """
insert into vehicle (pcid, rev, default_emaid) values ($1, 1, null)
on conflict (pcid) do update set rev = vehicle.rev + 1 returning rev, default_emaid
"""
_NAMESPACES = {namespace.value: namespace for namespace in Namespace}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Published:
    """What became of a contract: whether its vehicle has it anew, or this very variant had been there before; and
    which other vehicle had it until now.
    """

    created: bool
    moved_from: PCID | None
    replaced: bool = False


def microseconds(at: datetime) -> int:
    """An instant as it is stored where order matters: microseconds since 1970."""
    return (at - _EPOCH) // _MICROSECOND


def instant(stored: int) -> datetime:
    return _EPOCH + stored * _MICROSECOND


@gathered
def by_vehicle(pcid: PCID) -> Steps[list[SignedContract]]:
    """Every variant of every contract of a vehicle."""
    rows = yield _VARIANTS, (pcid,)
    return _known(rows)


@gathered
def waiting(pcid: PCID, namespace: Namespace) -> Steps[list[SignedContract]]:
    """Every variant of a vehicle's contracts; those of another namespace without message, metadata and keys."""
    rows = yield _WAITING, (pcid, namespace)
    return _known(rows)


@gathered
def by_vehicle_and_emaid(pcid: PCID, emaid: EMAID) -> Steps[list[SignedContract]]:
    """Every variant of one contract of a vehicle: the same question whether another vehicle has it or nobody."""
    rows = yield _VARIANTS + " and emaid = $2", (pcid, emaid)
    return _known(rows)


@gathered
def by_emaid(emaid: EMAID) -> Steps[list[SignedContract]]:
    """Every variant of one contract, none if it is unknown."""
    # Nothing is found where the contract moves between the two statements, so it is looked for again.
    for _ in range(10):
        claims = yield "select pcid from emaid_claim where emaid = $1", (emaid,)
        if not claims:
            break
        rows = yield _VARIANTS + " and emaid = $2", (claims[0][0], emaid)
        if rows:
            return _known(rows)
    return []


@newest
def holder(emaid: EMAID) -> Steps[PCID | None]:
    """The vehicle that a contract is bound to here, None where it is unknown."""
    claims = yield "select pcid from emaid_claim where emaid = $1", (emaid,)
    return PCID(claims[0][0]) if claims else None


@repeatable
def publish(contract: SignedContract, at: datetime) -> Steps[Published]:
    """Store a variant: as a new contract, in place of the same variant, or moved here from another vehicle.

    The first contract of a vehicle becomes its default.
    """
    holder = yield from _claim(contract.emaid, contract.pcid)
    if holder != contract.pcid:
        defaults = yield from lock_vehicles((holder, contract.pcid))
        yield from remove(contract.emaid, holder, defaults[holder], at)
        yield "update emaid_claim set pcid = $1 where emaid = $2", (contract.pcid, contract.emaid)
    else:
        defaults = yield from lock_vehicles((contract.pcid,))
    rev, default = defaults[contract.pcid]
    others = yield "select emaid, namespace, root_fingerprint from contract where pcid = $1", (contract.pcid,)
    created = all(emaid != contract.emaid for emaid, _, _ in others)
    if default is None and not others:
        default = contract.emaid
        yield "update vehicle set default_emaid = $1 where pcid = $2", (default, contract.pcid)
    yield (
        _ADD_VARIANT,
        (
            contract.emaid, contract.pcid, contract.namespace, contract.root_fingerprint, f"{contract.root_serial:x}",
            contract.root_dn, int(contract.valid_from.timestamp()), int(contract.valid_to.timestamp()),
            contract.certificate, contract.response, contract.remaining_from_end, contract.metadata,
            microseconds(at), microseconds(at), default == contract.emaid,
            None if contract.certificates is None else dump_keys(contract.certificates), contract.provisioning_key,
            *_leaf(contract), rev,
        ),
    )  # fmt: skip
    kind = EventKind.CREATED if created else EventKind.UPDATED
    yield event(kind, contract.emaid, contract.pcid, rev, at, [contract.namespace])
    same = (contract.emaid, contract.namespace, contract.root_fingerprint)
    replaced = any((emaid, namespace, root) == same for emaid, namespace, root in others)
    return Published(created, holder if holder != contract.pcid else None, replaced)


def spent_candidates(before: datetime) -> Steps[list[EMAID]]:
    """Contracts with a variant that had expired by then, or whose contract certificate is revoked."""
    expired = yield "select distinct emaid from contract where valid_to < $1", (int(before.timestamp()),)
    revoked = yield (
        "select distinct c.emaid from evidence e join contract c "
        "on c.certificate_issuer = e.issuer and c.certificate_serial = e.serial where e.status = 'revoked'",
        (),
    )
    return sorted({EMAID(emaid) for (emaid,) in (*expired, *revoked)})


def spent(emaid: EMAID, before: datetime) -> Steps[tuple[PCID, str] | None]:
    """The vehicle of a contract none of whose variants is of use any more, and why; None for every other contract."""
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


@repeatable
def cleanse(emaid: EMAID, before: datetime, at: datetime) -> Steps[tuple[PCID, str] | None]:
    """Remove a contract that is spent, judged while it is locked. Returns what `spent` says."""
    yield "select pcid from emaid_claim where emaid = $1 for update", (emaid,)
    found = yield from spent(emaid, before)
    if found is not None:
        yield from withdraw(emaid, at)
    return found


@repeatable
def withdraw(emaid: EMAID, at: datetime) -> Steps[PCID]:
    """Remove a contract with all its variants. Returns the vehicle that had it. Raises NotFound."""
    claims = yield "select pcid from emaid_claim where emaid = $1 for update", (emaid,)
    if not claims:
        raise NotFound("The contract for the given EMAID not found.")
    pcid = PCID(claims[0][0])
    vehicles = yield from lock_vehicles((pcid,))
    yield from remove(emaid, pcid, vehicles[pcid], at)
    yield "delete from emaid_claim where emaid = $1", (emaid,)
    return pcid


@repeatable
def set_default(emaid: EMAID, pcid: PCID, at: datetime) -> Steps[bool]:
    """Make a contract the vehicle's default, whichever was before. Returns whether it was another one.

    Raises NotFound when the vehicle has no such contract.
    """
    claims = yield "select pcid from emaid_claim where emaid = $1 for update", (emaid,)
    if not claims or claims[0][0] != pcid:
        raise NotFound("The contract for the given EMAID and PCID not found.")
    vehicles = yield from lock_vehicles((pcid,))
    if vehicles[pcid][1] == emaid:
        return False
    yield "update vehicle set default_emaid = $1 where pcid = $2", (emaid, pcid)
    yield "update contract set is_default = (emaid = $1) where pcid = $2", (emaid, pcid)
    return True


def _claim(emaid: EMAID, pcid: PCID) -> Steps[PCID]:
    """Lock the EMAID. Returns the vehicle it is bound to, which is `pcid` when it was free."""
    # An update that changes nothing: it locks the row that is there, and of a deletion it never sees half.
    insert = """
    insert into emaid_claim (emaid, pcid) values ($1, $2)
    on conflict (emaid) do update set pcid = emaid_claim.pcid returning pcid
    """
    claims = yield insert, (emaid, pcid)
    return PCID(claims[0][0])


def lock_vehicles(pcids: Iterable[PCID]) -> Steps[dict[PCID, tuple[int, str | None]]]:
    """Lock vehicles in order. Returns each one's new revision and its default EMAID."""
    vehicles = {}
    for pcid in sorted(pcids):
        rows = yield _LOCK_VEHICLE, (pcid,)
        vehicles[pcid] = (rows[0][0], rows[0][1])
    return vehicles


def remove(emaid: EMAID, pcid: PCID, vehicle: tuple[int, str | None], at: datetime) -> Steps[None]:
    """Take a contract from a vehicle that is locked, and tell its maker. No other becomes default.

    vehicle: its revision, which is the event's, and its default. The claim on the EMAID is the caller's to change.
    """
    rev, default = vehicle
    gone = yield "delete from contract where pcid = $1 and emaid = $2 returning namespace", (pcid, emaid)
    if default == emaid:
        yield "update vehicle set default_emaid = null where pcid = $1", (pcid,)
    yield event(EventKind.DELETED, emaid, pcid, rev, at, {row[0] for row in gone})


def event(
    kind: EventKind, emaid: EMAID, pcid: PCID, rev: int, at: datetime, namespaces: Iterable[str]
) -> tuple[str, Row]:
    """Part of every change to a contract. rev: the vehicle's, of this event alone. namespaces: of its variants."""
    insert = """
    insert into outbox (pcid, rev, kind, emaid, payload, created_at, lease_until, attempts)
    values ($1, $2, $3, $4, $5, $6, 0, 0)
    """
    payload = json.dumps({"emaid": emaid, "pcid": pcid, "namespaces": sorted(namespaces)})
    return insert, (pcid, rev, kind, emaid, payload, microseconds(at))


def _leaf(contract: SignedContract) -> tuple[str | None, str | None]:
    """The contract certificate's own key, by which a revoked contract is found. It comes first among the keys."""
    if not contract.certificates:
        return None, None
    return contract.certificates[0].issuer, f"{contract.certificates[0].serial:x}"


def _known(rows: Iterable[Row]) -> list[SignedContract]:
    """Variants, without those of an edition that only a newer release knows."""
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
        None if certificates is None else load_keys(certificates),
        provisioning_key,
    )
