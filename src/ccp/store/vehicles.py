"""Questions about a vehicle whose provisioning certificate has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from ccp.ids import EMAID, PCID
from ccp.store import audit
from ccp.store.audit import Action, Entry
from ccp.store.contracts import event, instant, lock_vehicles, remove
from ccp.store.steps import Steps, newest, repeatable
from ccp.subscriptions import EventKind


@dataclass(frozen=True, slots=True)
class Binding:
    """What ties one variant of a contract to a vehicle.

    provisioning_key: `ccp.neighbours.key_fingerprint` of the key that the contract was encrypted for; None where the
    Provisioning Certificate Pool did not know it.
    """

    emaid: EMAID
    namespace: str  # Perhaps one that only a newer release knows: what made a vehicle's contracts stale made it stale.
    root_fingerprint: str
    provisioning_key: str | None
    published_at: datetime


_BINDINGS = """
select emaid, namespace, root_fingerprint, provisioning_key, updated_at from contract where pcid = $1
order by emaid, namespace, root_fingerprint
"""


@newest
def bindings(pcid: PCID) -> Steps[list[Binding]]:
    """Every variant of every contract of a vehicle."""
    rows = yield _BINDINGS, (pcid,)
    return [
        Binding(EMAID(emaid), namespace, root, key, instant(updated_at))
        for emaid, namespace, root, key, updated_at in rows
    ]


def _every(binding: Binding) -> bool:
    return True


@repeatable
def forget_vehicle(
    pcid: PCID, at: datetime, stale: Callable[[Binding], bool], *, actor: str, why: str, trace_id: str
) -> Steps[list[EMAID]]:
    """What `withdraw_vehicle` does, with a row in the audit trail for each contract that changed. why: the event."""
    removed, reduced = yield from _withdraw(pcid, at, stale)
    yield from audit.record(
        *(
            Entry(
                at,
                actor,
                Action.VEHICLE_FORGOTTEN,
                {"emaid": emaid, "pcid": pcid, "event": why, "left": emaid in reduced},
                trace_id=trace_id,
            )
            for emaid in sorted({*removed, *reduced})
        )
    )
    return removed


@repeatable
def withdraw_vehicle(pcid: PCID, at: datetime, stale: Callable[[Binding], bool] = _every) -> Steps[list[EMAID]]:
    """Remove the variants of a vehicle's contracts that are stale. Returns the contracts of which none is left.

    A contract without variants goes as if its eMSP had withdrawn it, with a deleted event; one that keeps some gets an
    updated event. A vehicle without contracts is no mistake. stale: pure; asked while the vehicle is locked.
    """
    removed, _ = yield from _withdraw(pcid, at, stale)
    return removed


def _withdraw(pcid: PCID, at: datetime, stale: Callable[[Binding], bool]) -> Steps[tuple[list[EMAID], list[EMAID]]]:
    """Returns the contracts of which none is left, and those of which some variants are."""
    found = yield from bindings(pcid)
    claimed = set()
    for emaid in sorted({binding.emaid for binding in found if stale(binding)}):
        rows = yield "select pcid from emaid_claim where emaid = $1 for update", (emaid,)
        if rows and rows[0][0] == pcid:
            claimed.add(emaid)
    if not claimed:
        return [], []
    yield from lock_vehicles((pcid,))
    # What was published between the first look and the lock is newer than the reason to remove anything, and its claim
    # is not ours: to take it now would break the order of locks.
    found = [binding for binding in (yield from bindings(pcid)) if binding.emaid in claimed]
    removed: list[EMAID] = []
    reduced: list[EMAID] = []
    for emaid in sorted(claimed):
        variants = [binding for binding in found if binding.emaid == emaid]
        going = [binding for binding in variants if stale(binding)]
        if not going:
            continue
        vehicle = (yield from lock_vehicles((pcid,)))[pcid]  # Each event has a revision of its own.
        if len(going) == len(variants):
            yield from remove(emaid, pcid, vehicle, at)
            yield "delete from emaid_claim where emaid = $1", (emaid,)
            removed.append(emaid)
        else:
            delete = """
            delete from contract where pcid = $1 and emaid = $2 and namespace = $3 and root_fingerprint = $4
            """
            for binding in going:
                yield delete, (pcid, emaid, binding.namespace, binding.root_fingerprint)
            namespaces = {binding.namespace for binding in variants if binding not in going}
            yield event(EventKind.UPDATED, emaid, pcid, vehicle[0], at, namespaces)
            reduced.append(emaid)
    return removed, reduced
