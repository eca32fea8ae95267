"""Queries for vehicles whose provisioning certificate has changed: contract invalidation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from ccp.ids import EMAID, PCID
from ccp.server.domain.subscriptions import EventKind
from ccp.server.storage.engine.query import Query, SerializationConflict, read_committed, retryable
from ccp.server.storage.queries import audit
from ccp.server.storage.queries.audit import Action, Entry
from ccp.server.storage.queries.contracts import event, remove
from ccp.server.storage.queries.vehicle_lock import Now, instant, lock_vehicle, microseconds


@dataclass(frozen=True, slots=True)
class Binding:
    """The binding of a contract variant to a vehicle.

    provisioning_key: `ccp.server.external.provisioning_pool.key_fingerprint` of the key that the contract was
    encrypted for; None where the Provisioning Certificate Pool did not know it. published_at: when its publication
    began.
    """

    emaid: EMAID
    namespace: str  # May be one that only a newer release knows; its variants become stale too.
    root_fingerprint: str
    provisioning_key: str | None
    published_at: datetime


_BINDINGS = """
select emaid, namespace, root_fingerprint, provisioning_key, updated_at - coalesce(waited, 0) from contract
where pcid = $1
order by emaid, namespace, root_fingerprint
"""


@read_committed
def list_bindings(pcid: PCID) -> Query[list[Binding]]:
    """Every variant of every contract of a vehicle."""
    rows = yield _BINDINGS, (pcid,)
    return [Binding(EMAID(emaid), namespace, root, key, instant(began)) for emaid, namespace, root, key, began in rows]


def _all(binding: Binding) -> bool:
    return True


@retryable
def invalidate_with_audit(
    pcid: PCID,
    now: Now,
    stale: Callable[[Binding], bool],
    *,
    actor: str,
    why: str,
    trace_id: str,
    kind: EventKind | None = None,
) -> Query[list[EMAID]]:
    """As `invalidate`, with an audit row for each changed contract.

    why: the provisioning event. kind: the event for each eMSP that lost a contract or variants of one.
    """
    removed, reduced = yield from _invalidate(pcid, now, stale, kind)
    yield from audit.record(
        *(
            Entry(
                at,
                actor,
                Action.VEHICLE_FORGOTTEN,
                {"emaid": emaid, "pcid": pcid, "event": why, "left": emaid in reduced},
                trace_id=trace_id,
            )
            for emaid, at in sorted({**removed, **reduced}.items())
        )
    )
    return list(removed)


@retryable
def invalidate(pcid: PCID, now: Now, stale: Callable[[Binding], bool] = _all) -> Query[list[EMAID]]:
    """Remove the stale variants of a vehicle's contracts. Returns the contracts without a remaining variant.

    Such a contract is removed as if its eMSP had withdrawn it, with a deleted event; a contract that keeps variants
    gets an updated event. A vehicle without contracts is not an error. A publication in progress is refused when it is
    stored (`contracts.publish`), even if the vehicle had no row before. stale: a pure function, called under the lock.
    """
    removed, _ = yield from _invalidate(pcid, now, stale)
    return list(removed)


Changed: TypeAlias = dict[EMAID, datetime]
"""Changed contracts, with the time of the change."""


def _invalidate(
    pcid: PCID, now: Now, stale: Callable[[Binding], bool], kind: EventKind | None = None
) -> Query[tuple[Changed, Changed]]:
    """Returns the contracts without a remaining variant, and those that keep some."""
    found = yield from list_bindings(pcid)
    claimed = set()
    for emaid in sorted({binding.emaid for binding in found if stale(binding)}):
        rows = yield "select pcid from emaid_claim where emaid = $1 for update", (emaid,)
        if rows and rows[0][0] == pcid:
            claimed.add(emaid)
    vehicle = yield from lock_vehicle(pcid, now)
    yield "update vehicle set provisioned_at = $1 where pcid = $2", (microseconds(vehicle.at), pcid)
    found = yield from list_bindings(pcid)
    if any(binding.emaid not in claimed and stale(binding) for binding in found):
        # A publication committed between the first read and the lock. Locking its claim now would violate the lock
        # order, so the write is retried.
        raise SerializationConflict("The vehicle's contracts changed meanwhile; nothing was changed, try again.")
    removed: Changed = {}
    reduced: Changed = {}
    for emaid in sorted(claimed):
        variants = [binding for binding in found if binding.emaid == emaid]
        going = [binding for binding in variants if stale(binding)]
        if not going:
            continue
        vehicle = yield from lock_vehicle(pcid, now)  # Each event has its own revision.
        if len(going) == len(variants):
            yield from remove(emaid, pcid, vehicle)
            yield "delete from emaid_claim where emaid = $1", (emaid,)
            removed[emaid] = vehicle.at
        else:
            delete = """
            delete from contract where pcid = $1 and emaid = $2 and namespace = $3 and root_fingerprint = $4
            """
            for binding in going:
                yield delete, (pcid, emaid, binding.namespace, binding.root_fingerprint)
            namespaces = {binding.namespace for binding in variants if binding not in going}
            yield event(EventKind.UPDATED, emaid, pcid, vehicle, namespaces)
            reduced[emaid] = vehicle.at
        if kind is not None:
            vehicle = yield from lock_vehicle(pcid, now)
            yield event(kind, emaid, pcid, vehicle, {binding.namespace for binding in going})
    return removed, reduced
