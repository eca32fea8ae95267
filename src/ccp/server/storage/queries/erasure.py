"""Queries for erasure (data protection): remove everything that is stored about one contract or one vehicle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from ccp.errors import Unavailable
from ccp.ids import EMAID, PCID
from ccp.server.domain.subscriptions import EventKind
from ccp.server.storage.engine.query import Query, long_read
from ccp.server.storage.queries import audit, handed_out, refusals
from ccp.server.storage.queries.audit import AuditRow
from ccp.server.storage.queries.change_counters import ChangeCounter, clear_log
from ccp.server.storage.queries.contracts import remove
from ccp.server.storage.queries.outbox import hold as hold_outbox
from ccp.server.storage.queries.vehicle_lock import LockedVehicle, lock_vehicle

CertificateKey = tuple[str, str]
"""Issuer and serial number of a certificate, as stored in `evidence` and `watched_certificate`."""


@dataclass(slots=True)
class Erased:
    """Numbers of removed rows.

    deliveries: what was remembered of deliveries one by one. refusals: records of refused deliveries. waiting: events
    for the vehicle's OEM that are still to be
    delivered. vehicle: the vehicle's own row was removed; it stays while an event waits. keys: certificates of the
    contracts.
    """

    contracts: int = 0
    variants: int = 0
    events: int = 0
    evidence: int = 0
    watched: int = 0
    audit_rows: int = 0
    deliveries: int = 0
    refusals: int = 0
    vehicle: bool = False
    waiting: int = 0
    keys: set[CertificateKey] = field(default_factory=set)


class DryRun(Exception):
    """Raised at the end of a dry run, to roll it back."""

    def __init__(self, erased: Erased) -> None:
        super().__init__()
        self.erased = erased


@long_read
def list_watched(after: CertificateKey, limit: int = 500) -> Query[list[tuple[str, str, bytes]]]:
    """Issuer, serial number and DER of watched certificates, in order, beginning after a key."""
    select = """
    select issuer, serial, certificate from watched_certificate
    where issuer > $1 or (issuer = $1 and serial > $2) order by issuer, serial limit $3
    """
    rows = yield select, (*after, limit)
    return [(issuer, serial, bytes(certificate)) for issuer, serial, certificate in rows]


@dataclass(frozen=True, slots=True)
class AuditRows:
    """Rows of the audit trail that name an id. searched: the last number that was searched, by shard."""

    found: tuple[AuditRow, ...] = ()
    searched: Mapping[int, int] = field(default_factory=dict)


def erase(
    named: EMAID | PCID,
    keys: Iterable[CertificateKey],
    now: datetime,
    actor: str,
    *,
    notify: bool,
    dry_run: bool = False,
    rows: AuditRows = AuditRows(),
) -> Query[Erased]:
    """Remove everything stored about a contract or a vehicle, and blank the audit rows that name it.

    keys: certificates that name it, besides those of the contracts themselves. notify: the vehicle's OEM gets an event
    for each contract that is removed, as for every other removal; without it no event that names the id stays. dry_run:
    raise DryRun instead of committing. rows: rows of the audit trail that were searched before; the rest is searched
    here, while every other write waits. Raises Unavailable.
    """
    erased = Erased(keys=set(keys))
    if isinstance(named, EMAID):
        yield from _erase_contract(named, now, erased)
    else:
        yield from _erase_vehicle(named, now, erased)
    yield from _erase_events(named, erased, notify=notify)
    erased.deliveries = yield from handed_out.erase(named)
    erased.refusals = yield from refusals.erase(named)
    if isinstance(named, PCID) and not erased.waiting:
        erased.vehicle = bool((yield "delete from vehicle where pcid = $1 returning pcid", (named,)))
    if isinstance(named, PCID):
        yield clear_log(ChangeCounter.NEGATIVES)  # It names vehicles of other pools.
    for key in sorted(erased.keys):
        yield from _erase_evidence(key, erased)
    found = [*rows.found, *(yield from audit.rows_naming(named, rows.searched))]
    yield from audit.erase_subjects(found)
    erased.audit_rows = len(found)
    what = {
        "kind": "emaid" if isinstance(named, EMAID) else "pcid",
        "contracts": erased.contracts,
        "variants": erased.variants,
        "events": erased.events,
        "deliveries": erased.deliveries,
        "refusals": erased.refusals,
        "evidence": erased.evidence + erased.watched,
        "vehicle": erased.vehicle,
    }
    yield from audit.record(*audit.erasure_entries(found, now, actor, what))
    if dry_run:
        raise DryRun(erased)
    return erased


def _erase_contract(emaid: EMAID, now: datetime, erased: Erased) -> Query[None]:
    claims = yield "select pcid from emaid_claim where emaid = $1 for update", (emaid,)
    if claims:
        pcid = PCID(claims[0][0])
        vehicle = yield from lock_vehicle(pcid, now)
        yield from _remove(emaid, pcid, vehicle, erased)


def _erase_vehicle(pcid: PCID, now: datetime, erased: Erased) -> Query[None]:
    select = "select distinct emaid from contract where pcid = $1 order by emaid"
    found = yield select, (pcid,)
    for (emaid,) in found:
        yield "select pcid from emaid_claim where emaid = $1 for update", (emaid,)
    known = yield "select rev from vehicle where pcid = $1 for update", (pcid,)
    if not known:
        return
    if (yield select, (pcid,)) != found:
        raise Unavailable("The vehicle's contracts changed meanwhile; nothing was erased, try again.")
    for (emaid,) in found:
        vehicle = yield from lock_vehicle(pcid, now)  # Each event has its own revision.
        yield from _remove(EMAID(emaid), pcid, vehicle, erased)


def _remove(emaid: EMAID, pcid: PCID, vehicle: LockedVehicle, erased: Erased) -> Query[None]:
    rows = yield (
        "select certificate_issuer, certificate_serial from contract where pcid = $1 and emaid = $2",
        (pcid, emaid),
    )
    erased.keys |= {(issuer, serial) for issuer, serial in rows if issuer is not None}
    erased.contracts += 1
    erased.variants += len(rows)
    yield from remove(emaid, pcid, vehicle)
    yield "delete from emaid_claim where emaid = $1", (emaid,)


def _erase_events(named: EMAID | PCID, erased: Erased, *, notify: bool) -> Query[None]:
    """Remove events, sent or not, except the removal events for the OEM, which has to delete its data too."""
    of = "emaid = $1" if isinstance(named, EMAID) else "pcid = $1"
    # Nothing leaves the outbox meanwhile, so every event is in the outbox or among the deliveries.
    yield from hold_outbox()
    delete = f"delete from outbox where {of} and ($2 = 0 or kind <> $3) returning rev"  # noqa: S608  constants
    rows = yield delete, (named, int(notify), EventKind.DELETED.value)
    erased.events = len(rows)
    # One by one, in lock order.
    found = yield (
        f"select pcid, rev, part, webhook_id from delivery where {of} "  # noqa: S608
        "and ($2 = 0 or kind <> $3 or state <> 'waiting') order by pcid, rev, part, webhook_id",
        (named, int(notify), EventKind.DELETED.value),
    )
    for key in found:
        yield "delete from delivery where pcid = $1 and rev = $2 and part = $3 and webhook_id = $4", tuple(key)
    erased.events += len(found)
    left = yield f"select count(*) from outbox where {of}", (named,)  # noqa: S608
    waiting = yield f"select count(*) from delivery where {of}", (named,)  # noqa: S608
    erased.waiting = left[0][0] + waiting[0][0]


def _erase_evidence(key: CertificateKey, erased: Erased) -> Query[None]:
    """Remove revocation data of a certificate. A revocation stays, or the certificate would be accepted again."""
    rows = yield "delete from watched_certificate where issuer = $1 and serial = $2 returning serial", key
    erased.watched += len(rows)
    rows = yield (
        "delete from evidence where issuer = $1 and serial = $2 and status <> 'revoked' returning serial",
        key,
    )
    erased.evidence += len(rows)
