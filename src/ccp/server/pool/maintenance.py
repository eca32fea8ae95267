"""Maintenance: changes to stored contracts. Withdraw, default, provisioning events, purge, erase.

Each change is one transaction with its events and its audit row.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ccp.errors import CCPError, Unavailable, UpstreamError
from ccp.ids import EMAID, PCID
from ccp.server.domain.authorization import Operation, authorise
from ccp.server.domain.parties import Caller, Standing
from ccp.server.events import EventSink
from ccp.server.external.pki_service import RevocationReason
from ccp.server.external.services import ExternalServices
from ccp.server.pool import purging
from ccp.server.pool.contract_invalidation import EVENT_KINDS, ProvisioningChange, ProvisioningEvent, invalidates
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import audit, erasure, refusals, vehicles
from ccp.server.storage.queries import contracts as queries
from ccp.server.storage.queries import purging as purging_queries
from ccp.server.storage.queries.audit import Action, AuditRow, Entry
from ccp.server.storage.queries.caller_standing import check_standing
from ccp.server.storage.queries.contracts import Removed
from ccp.server.storage.queries.erasure import DryRun, Erased
from ccp.x509.certificates import Certificate

# Age at which a row is removed that holds nothing but a provisioning event. No publication takes as long as this, so
# the row is not needed to refuse one any more.
_IDLE_VEHICLE: Final = timedelta(days=1)
AUDIT_PORTION: Final = 10_000
"""Rows of the audit trail that one query searches."""


@dataclass(frozen=True, slots=True)
class Purged:
    """A contract that a purge removed, or would remove. reason: "expired" or "revoked"."""

    emaid: EMAID
    pcid: PCID
    reason: str


class Maintenance:
    """Changes and removes stored contracts."""

    def __init__(
        self,
        store: Store,
        external: ExternalServices,
        settings: Settings,
        events: EventSink,
        clock: Callable[[], datetime],
    ) -> None:
        """events: is notified of withdrawals. clock: gives the time of a change while its vehicle is locked."""
        self._store = store
        self._provisioning_pool = external.provisioning_pool
        self._pki = external.pki_service
        self._events = events
        self._clock = clock
        self._purge_grace = timedelta(seconds=settings.purge_grace)

    async def withdraw(
        self,
        caller: Caller,
        emaid: EMAID,
        now: datetime,
        *,
        revoke: bool = True,
        reason: RevocationReason = RevocationReason.CESSATION_OF_OPERATION,
    ) -> None:
        """Remove a contract with all its variants.

        revoke: revoke its certificates first, if an operator CA issued them. Raises NotAuthorised, NotFound,
        Unavailable; UpstreamError if the PKI service cannot revoke them: then nothing is removed.
        """
        authorise(caller.party, Operation.WITHDRAW, emaid)
        standing = _standing(caller, Operation.WITHDRAW, emaid)
        if revoke and self._pki is not None:
            if standing is not None:
                # A revocation cannot be undone, so the caller's authorization is read again before it.
                await self._store.read(check_standing(standing))
            await self._pki.revoke_issued(await self._store.read(queries.by_emaid(emaid)), reason)
        await self._store.write(
            audit.with_audit(
                queries.withdraw(emaid, self._clock),
                lambda gone: [_entry(caller, Action.CONTRACT_WITHDRAWN, gone.at, emaid=emaid, pcid=gone.pcid)],
                standing,
            )
        )
        self._events.change_committed()

    async def set_default(self, caller: Caller, emaid: EMAID, pcid: PCID, now: datetime) -> None:
        """Make a contract the vehicle's default. Raises NotAuthorised, NotFound, Unavailable."""
        authorise(caller.party, Operation.SET_DEFAULT, pcid)
        await self._store.write(
            audit.with_audit(
                queries.set_default(emaid, pcid, self._clock),
                lambda set_at: (
                    [_entry(caller, Action.CONTRACT_DEFAULT, set_at, emaid=emaid, pcid=pcid)] if set_at else []
                ),
                _standing(caller, Operation.SET_DEFAULT, pcid),
            )
        )

    async def invalidate_vehicle(self, event: ProvisioningEvent, now: datetime, trace_id: str) -> list[EMAID]:
        """Remove the contracts that a provisioning event makes useless. Returns their EMAIDs.

        Raises Unavailable if the Provisioning Certificate Pool does not answer; its event has to be sent again.
        """
        if self._provisioning_pool is not None:
            self._provisioning_pool.invalidate(event.pcid)
        current = None
        bound = await self._store.read(vehicles.list_bindings(event.pcid))
        if event.change is ProvisioningChange.UPDATED and bound:
            try:
                current = (
                    await self._provisioning_pool.fetch_chain(event.pcid)
                    if self._provisioning_pool is not None
                    else None
                )
            except UpstreamError as exc:
                sentence = "The Provisioning Certificate Pool cannot be asked for the vehicle's key now."
                raise Unavailable(sentence) from exc
        return await self._store.write(
            vehicles.invalidate_with_audit(
                event.pcid,
                self._clock,
                invalidates(event, current, now),
                actor=audit.PCP,
                why=event.change.value,
                trace_id=trace_id,
                kind=EVENT_KINDS[event.change],
            )
        )

    async def purge_expired(
        self, now: datetime, *, actor: str = audit.POOL, dry_run: bool = False
    ) -> AsyncIterator[Purged]:
        """Remove contracts that expired more than `purge_grace` seconds ago, and those whose certificate is revoked.

        Yields each contract once it is removed. Contracts are found in portions, so no query takes long. actor: for the
        audit trail. dry_run: remove nothing; a contract may then be yielded twice. Raises Unavailable.
        """
        before = now - self._purge_grace
        async for emaid in purging.candidates(self._store, before):
            if dry_run:
                found = await self._store.read(purging_queries.purge_reason(emaid, before))
            else:
                gone = await self._store.write(_purge(emaid, before, self._clock, actor))
                found = (gone.pcid, gone.reason or "") if gone is not None else None
            if found is not None:
                yield Purged(emaid, *found)
        if not dry_run:
            await purging.remove_idle_vehicles(self._store, now - _IDLE_VEHICLE)
            await purging.remove_handed_out(self._store, now)

    async def erase(
        self,
        subject: EMAID | PCID,
        now: datetime,
        *,
        actor: str,
        notify: bool = True,
        dry_run: bool = False,
        settle: float = 0.0,
    ) -> Erased:
        """Remove everything that is kept about a contract or a vehicle. For the operator: no caller is authorised.

        notify: send the vehicle's maker an event for each removed contract. settle: seconds after which records of
        refused deliveries are removed once more, because workers write those of the last second later. Workers may
        hold a vehicle's provisioning chain in memory for up to one minute after this. Raises Unavailable.
        """
        keys = await self._certificates_of(subject)
        rows = await self._audit_rows_naming(subject)
        change = erasure.erase(subject, keys, now, actor, notify=notify, dry_run=dry_run, rows=rows)
        try:
            erased = await self._store.write(change)
        except DryRun as dry:
            return dry.erased
        if settle:
            await asyncio.sleep(settle)
            erased.refusals += await self._store.write(refusals.erase(subject))
        return erased

    async def _audit_rows_naming(self, subject: EMAID | PCID) -> erasure.AuditRows:
        """Search the audit trail in portions, before the transaction that blanks rows of it."""
        found: list[AuditRow] = []
        ends = await self._store.read(audit.shard_lengths())
        for shard, last in ends.items():
            for after in range(0, last, AUDIT_PORTION):
                until = min(after + AUDIT_PORTION, last)
                found += await self._store.read(audit.rows_naming_in_shard(subject, shard, after, until))
        return erasure.AuditRows(tuple(found), ends)

    async def _certificates_of(self, subject: EMAID | PCID) -> set[erasure.CertificateKey]:
        """Watched certificates issued to a contract, or to a vehicle and its contracts. Searches all of them."""
        names: list[EMAID | PCID] = [subject]
        if isinstance(subject, PCID):
            names += {contract.emaid for contract in await self._store.read(queries.by_vehicle(subject))}
        found: set[erasure.CertificateKey] = set()
        after = ("", "")
        while portion := await self._store.read(erasure.list_watched(after)):
            found |= {
                (issuer, serial) for issuer, serial, der in portion if any(_issued_to(der, name) for name in names)
            }
            after = portion[-1][:2]
        return found


def _issued_to(der: bytes, subject: EMAID | PCID) -> bool:
    """Whether a certificate's common name is the id, in any of its notations (with hyphens, lower case)."""
    if subject.encode() not in der.upper().replace(b"-", b""):
        return False
    try:
        return type(subject).parse(Certificate.load(der).subject_cn) == subject
    except CCPError:
        return False


def _purge(emaid: EMAID, before: datetime, clock: Callable[[], datetime], actor: str) -> Query[Removed | None]:
    """The transaction that purges one contract, with its audit row."""

    def entries(removed: Removed | None) -> list[Entry]:
        if removed is None:
            return []
        subject = {"emaid": emaid, "pcid": removed.pcid, "reason": removed.reason}
        return [Entry(removed.at, actor, Action.CONTRACT_PURGED, subject)]

    return audit.with_audit(purging_queries.purge(emaid, before, clock), entries)


def _entry(caller: Caller, action: Action, at: datetime, **subject: str) -> Entry:
    """The audit entry of a caller's change."""
    return Entry(at, caller.party.client_id, action, subject, trace_id=caller.trace_id)


def _standing(caller: Caller, operation: Operation, subject: EMAID | PCID) -> Standing | None:
    return caller.standing(lambda party: authorise(party, operation, subject))
