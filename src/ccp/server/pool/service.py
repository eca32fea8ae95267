"""The pool's rules: one method for each operation. The only owner of transactions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import structlog

from ccp import verify
from ccp.errors import (
    CCPError,
    ChainError,
    ExpiredError,
    NoContract,
    NotFound,
    RevokedError,
    Unavailable,
    UpstreamError,
    VerificationError,
    without_frames,
)
from ccp.exi.base64_text import message_bytes
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.server.domain import contracts
from ccp.server.domain.authorization import Operation, authorise
from ccp.server.domain.contracts import NoDefaultPolicy, RootMatch, SignedContract, signed_contract
from ccp.server.domain.parties import Caller, Standing
from ccp.server.events import Nobody, Outlet
from ccp.server.external.pki_service import RevocationReason
from ccp.server.external.provisioning_pool import key_fingerprint
from ccp.server.external.services import ExternalServices
from ccp.server.metrics import Metrics
from ccp.server.pool import purging
from ccp.server.pool.contract_invalidation import TOLD_AS, Change, VehicleEvent, made_stale
from ccp.server.pool.peers import Peers
from ccp.server.pool.publication import Publications, utc_now
from ccp.server.settings import Settings, VehicleTrust
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query, batchable
from ccp.server.storage.queries import audit, erasure, vehicles
from ccp.server.storage.queries import contracts as queries
from ccp.server.storage.queries import revocation as evidence
from ccp.server.storage.queries.audit import Action, AuditRow, Entry
from ccp.server.storage.queries.caller_standing import check_standing
from ccp.server.storage.queries.contracts import Removed
from ccp.server.storage.queries.erasure import DryRun, Erased
from ccp.server.storage.queries.revocation import RevocationCache
from ccp.server.trust.anchors import Trust
from ccp.server.trust.revocation import RevocationService
from ccp.verify import InstallationRequest, InstallationResponse, VerifiedInstallationRequest, lint
from ccp.verify.report import Checks
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.revocation_policy import AskedLater, Key, Known, Rules, check_keys

_log = structlog.get_logger("ccp.server.pool.service")

_UNSIGNED: Final = "It is checked only for messages that a trusted provisioning service signed."
DELIVERY_TIMEOUT: Final = 3.5
"""Seconds for a vehicle's request, from its head to the answer, without the time in which its body arrives.

A vehicle waits five seconds and its station 4.5; the answer has to be written and to travel in what is left.
"""
_TIMED_OUT: Final = "The pool cannot answer in time now; try again."
_NO_EVIDENCE: Final = "The revocation status of the vehicle's contract is not known now; try again."
# A row that says only that a provisioning event came: longer than any publication is under way.
_IDLE_VEHICLE: Final = timedelta(days=1)
AUDIT_PORTION: Final = 10_000
"""Rows of the audit trail that are looked through at a time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A contract, and its response as it goes out."""

    contract: SignedContract
    response: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was read but gets no contract. pcid: None where the vehicle's certificate names none.

    reason: Unavailable for a temporary failure.
    """

    pcid: PCID | None
    response: bytes
    reason: CCPError


@dataclass(frozen=True, slots=True)
class Publication:
    """A contract that passed every check of PUT and is not stored yet. warnings: sentences for its publisher."""

    contract: SignedContract
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cleansed:
    """A contract that was removed, or would be, and why."""

    emaid: EMAID
    pcid: PCID
    reason: str


class Pool:
    """Everything the API can ask. `at` is the time of the request, taken once at the edge."""

    def __init__(
        self,
        store: Store,
        trust: Trust,
        revocation: RevocationService,
        peers: Peers,
        external: ExternalServices,
        settings: Settings,
        outlet: Outlet | None = None,
        *,
        clock: Callable[[], datetime] = utc_now,
        metrics: Metrics | None = None,
    ) -> None:
        """outlet: receives what is handed out, if it is given. clock: stamps changes while their vehicle is locked."""
        self._clock = clock
        self.publications: Final = Publications(store, settings, clock, metrics or Metrics())
        self._outlet = outlet or Nobody()
        self._store = store
        self._trust = trust
        self._revocation = revocation
        self._peers = peers
        self._pcp = external.provisioning_pool
        self._pki = external.pki_service
        self._vehicle_trust: VehicleTrust = settings.vehicle_trust
        self._no_default: NoDefaultPolicy = settings.no_default_policy
        self._root_match: RootMatch = settings.root_match
        self._known_vehicles_only: bool = settings.require_known_vehicle is not False
        self._cleanse_grace = timedelta(seconds=settings.purge_grace)

    @property
    def anchors(self) -> TrustAnchors:
        """What is trusted now."""
        return self._trust.anchors

    async def deliver(
        self,
        caller: Caller,
        namespace: Namespace,
        message: str,
        *,
        broadcast: bool,
        at: datetime,
        single: bool = False,
        to: str | None = None,
        deadline: float | None = None,
    ) -> list[Answer] | Refusal:
        """Answer a vehicle's CertificateInstallationReq.

        message: EXI in Base64. broadcast: other pools may be asked. single: one contract at most, whatever the vehicle
        takes, because the caller can hand on no more. to: another pool that the request is for, which alone is asked.
        deadline: when the answer has to be there, in the event loop's time; None: `DELIVERY_TIMEOUT` from now.
        Raises EXIError, NotAuthorised. A temporary failure is a refusal too: stations hand on nothing but a message.
        """
        authorise(caller.party, Operation.DELIVER)
        request = verify.read_request(message_bytes(message), namespace)
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + DELIVERY_TIMEOUT
        try:
            async with asyncio.timeout_at(deadline) as limit:
                return await self._find(caller, request, broadcast, at, single, to)
        except TimeoutError as exc:
            if not limit.expired():
                raise
            reason: CCPError = Unavailable(_TIMED_OUT)
            reason.__cause__ = exc
        except (VerificationError, NotFound, Unavailable) as exc:
            reason = exc
        negative = verify.refuse(namespace, request.session_id, reason, at)
        return Refusal(verify.pcid_said(request), negative, without_frames(reason))

    async def _find(
        self, caller: Caller, request: InstallationRequest, broadcast: bool, at: datetime, single: bool, to: str | None
    ) -> list[Answer]:
        """What `deliver` answers with. Raises VerificationError, NotFound, Unavailable."""
        await asyncio.sleep(0)  # All requests of a turn are read, then all are verified: see `SQLiteStore._answer`.
        verified = await self._verify(request, at)
        keys = self._revocation.keys_of(verified.chain)
        waiting = _waiting(verified.pcid, request.namespace, keys, self._revocation.rules, self._revocation.recent)
        stored, known = await self._store.read(waiting)
        if verified.chain is not None:
            self._revocation.judge_vehicle(verified.chain, keys, known, at)
        await self._check_current(verified)
        if to is None:
            return await self._choose(verified, stored, known, broadcast, at, single, caller)
        if found := await self._elsewhere(verified, caller, at, single, to):
            return found
        raise NoContract("The pool that the request is for has nothing for the vehicle now.")

    async def _verify(self, request: InstallationRequest, at: datetime) -> VerifiedInstallationRequest:
        """Verify a vehicle's request. ISO 15118-2 carries its leaf alone: what is missing may be known elsewhere."""
        anchors = self._trust.anchors if self._vehicle_trust is VehicleTrust.CHAIN else None
        try:
            return verify.verify_request(request, anchors=anchors, revocation=AskedLater(), at=at)
        except ChainError as exc:
            # Signatures are checked before chains, so nobody makes us ask about a vehicle without its key.
            said = None if request.sub_certificates or self._pcp is None else verify.pcid_said(request)
            if self._pcp is None or said is None or isinstance(exc, ExpiredError):
                raise
            known = await self._pcp.get_chain(said)
            if known is None:
                raise
            completed = replace(request, sub_certificates=tuple(one.der for one in known.sub_cas))
            return verify.verify_request(completed, anchors=anchors, revocation=AskedLater(), at=at)

    async def _check_current(self, verified: VerifiedInstallationRequest) -> None:
        """Refuse a vehicle that is known to have another key by now. Raises ChainError."""
        if self._pcp is None:
            return
        used, namespace = key_fingerprint(verified.leaf), verified.request.namespace
        for fresh in (False, True):  # What is remembered may be older than the car's certificate.
            current = await self._pcp.get_chain(verified.pcid, fresh=fresh)
            if current is None or current.key_for(namespace) in (None, used):
                return
        raise ChainError("The provisioning certificate is not the vehicle's current one.")

    def _problem(self, contract: SignedContract, known: Known, key: str | None, at: datetime) -> CCPError | None:
        """What is held against a stored contract, from what is known and without asking anybody.

        key: the vehicle's current one, as far as it is known. Unavailable: evidence that is needed cannot be had now.
        """
        if key is not None and contract.provisioning_key not in (None, key):
            return ChainError("The contract was made for another provisioning key than the vehicle's current one.")
        try:
            check_keys(contract.certificates or (), known, self._revocation.rules, at)
        except (RevokedError, Unavailable) as exc:
            return exc
        return None

    async def _choose(
        self,
        verified: VerifiedInstallationRequest,
        stored: list[SignedContract],
        known: Known,
        broadcast: bool,
        at: datetime,
        single: bool,
        caller: Caller,
    ) -> list[Answer]:
        request = verified.request
        bound = any(contract.provisioning_key for contract in stored)
        key = key_fingerprint(verified.leaf) if bound else None
        without_evidence: list[CCPError] = []

        def good(contract: SignedContract) -> bool:
            problem = self._problem(contract, known, key, at)
            if problem is not None:
                _log.warning("contract not deliverable", owner=contract.emaid.provider, reason=str(problem))
            if isinstance(problem, Unavailable):
                without_evidence.append(problem)
            return problem is None

        def good_but_for_evidence(contract: SignedContract) -> bool:
            return isinstance(self._problem(contract, known, key, at), Unavailable | None)

        try:
            chosen = self._selected(request, stored, at, good, single)
        except NotFound as nothing:
            not_asked: tuple[str, ...] = ()
            try:
                if broadcast and (found := await self._elsewhere(verified, caller, at, single)):
                    return found
            except Unavailable as limited:
                not_asked = limited.messages
            if without_evidence:
                self._selected(request, stored, at, good_but_for_evidence, single)
                raise Unavailable(_NO_EVIDENCE) from without_evidence[0]  # What is chosen may be delivered soon.
            if not_asked:  # An answer of this pool alone says so.
                raise type(nothing)(*nothing.messages, *not_asked) from nothing
            raise
        self._outlet.handed_out((contract for contract, _ in chosen), at)
        return [Answer(c, verify.with_session(c, request.session_id, at, remaining)) for c, remaining in chosen]

    def _selected(
        self,
        request: InstallationRequest,
        stored: list[SignedContract],
        at: datetime,
        good: contracts.IsDeliverable,
        single: bool,
    ) -> Sequence[tuple[SignedContract, int | None]]:
        """The contracts that a vehicle gets, each with what remains after it (-20). Raises NotFound."""
        if request.namespace is Namespace.ISO2:
            contract = contracts.select_for_iso2(
                stored,
                at,
                root_listed=request.trusts_root_of,
                deliverable=good,
                no_default=self._no_default,
                root_match=self._root_match,
            )
            return [(contract, None)]
        return contracts.select_for_iso20(
            stored,
            at,
            root_listed=request.trusts_root_of,
            deliverable=good,
            prioritized_emaids=request.prioritised,
            max_chains=min(request.maximum, 1) if single else request.maximum,
            root_match=self._root_match,
        )

    async def _elsewhere(
        self, verified: VerifiedInstallationRequest, caller: Caller, at: datetime, single: bool, to: str | None = None
    ) -> list[Answer]:
        """What other pools have for the vehicle; nothing, if they have nothing. to: this one alone."""
        found = await self._peers.ask(verified, caller, at, to)
        if single and found:
            contract = found[0][0]
            return [Answer(contract, verify.with_session(contract, verified.request.session_id, at, 0))]
        return [Answer(*item) for item in found]

    async def publish(
        self,
        caller: Caller,
        *,
        emaid: EMAID,
        pcid: PCID,
        namespace: Namespace,
        message: str,
        root: Fingerprint | None,
        metadata: str | None,
        at: datetime,
        began: datetime | None = None,
    ) -> None:
        """Check a signed response and store it; durable when this returns.

        message: EXI in Base64. root: the V2G root that the publisher names. began: when the request arrived, if its
        body took time; the contract is refused where its vehicle's provisioning certificate changed since then. Raises
        NotAuthorised, FieldError, EXIError, MismatchError, VerificationError, LimitExceeded, Unavailable.
        """
        ready = await self.prepare(
            caller, emaid=emaid, pcid=pcid, namespace=namespace, message=message, root=root, metadata=metadata, at=at,
            began=began,
        )  # fmt: skip
        await self.publications.publish(caller, ready.contract)
        self._outlet.changed()
        if ready.warnings:
            _log.warning("published with warnings", owner=emaid.provider, warnings=ready.warnings)

    async def prepare(
        self,
        caller: Caller,
        *,
        emaid: EMAID,
        pcid: PCID,
        namespace: Namespace,
        message: str,
        root: Fingerprint | None,
        metadata: str | None,
        at: datetime,
        began: datetime | None = None,
    ) -> Publication:
        """Everything of `publish` but the storing, which `publications` does; takes and raises the same."""
        authorise(caller.party, Operation.PUBLISH, emaid)
        response = verify.read_response(message_bytes(message), namespace)
        verified = verify.verify_response(
            response, emaid=emaid, root=root, anchors=self._trust.anchors, revocation=AskedLater(), at=at
        )
        cleared = await self._revocation.require(
            (verified.contract_chain, verified.cps_chain), at, caller=caller.party.client_id
        )
        key = None
        if self._pcp is not None:
            chain = await self._pcp.chain_for_publication(pcid, required=self._known_vehicles_only)
            key = None if chain is None else chain.key_for(namespace)
        contract = signed_contract(
            verified, pcid, metadata, began or at, certificates=cleared.keys, provisioning_key=key
        )
        leaves = verified.contract_chain.leaf, verified.cps_chain.leaf
        return Publication(contract, lint.on_response(response, self._trust.anchors, at, leaves))

    async def examine(
        self,
        caller: Caller,
        *,
        emaid: EMAID,
        pcid: PCID,
        namespace: Namespace,
        message: str,
        root: Fingerprint | None,
        at: datetime,
        began: datetime | None = None,
    ) -> tuple[Checks, tuple[str, ...]]:
        """What `publish` would say: every check and the warnings. Nothing is stored, and no vehicle is locked.

        The vehicle is checked only for a message that a trusted provisioning service signed: nobody else learns of it,
        or has the Provisioning Certificate Pool asked. began: as for `publish`. Raises NotAuthorised, EXIError.
        """
        authorise(caller.party, Operation.PUBLISH, emaid)
        response = verify.read_response(message_bytes(message), namespace)
        asked = AskedLater()
        checks, warnings = await self.explain(
            response, emaid=emaid, root=root, at=at, fetch=True, caller=caller.party.client_id, asked=asked
        )
        trusted = bool(asked.chains)
        if self._pcp is not None and self._known_vehicles_only:
            known = partial(self._pcp.chain_for_publication, pcid, required=True)
            await checks.ask(
                "vehicle known to the Provisioning Certificate Pool", known, when=trusted, without=_UNSIGNED
            )
        room = partial(self.publications.check, emaid, pcid, began or at)
        await checks.ask(
            "contracts of the vehicle", room, when=trusted, without=_UNSIGNED, evidence=lambda said: (said,)
        )
        return checks, warnings

    async def explain(
        self,
        response: InstallationResponse,
        *,
        emaid: EMAID | None,
        root: Fingerprint | None,
        at: datetime,
        fetch: bool,
        caller: str = "",
        asked: AskedLater | None = None,
    ) -> tuple[Checks, tuple[str, ...]]:
        """Every check on a response, told in full, and the warnings. fetch: ask for evidence that is missing. caller:
        the party on whose behalf. asked: receives the chains to ask about.

        Evidence is fetched for a message that a trusted provisioning service signed, whatever else is wrong with it;
        chains that do not hold are not asked about.
        """
        asked = AskedLater() if asked is None else asked
        against = {"emaid": emaid, "root": root, "anchors": self._trust.anchors, "at": at}
        _tell(Checks(tell=True), response, revocation=asked, **against)
        stored = await (
            self._revocation.gathered(asked.chains, at, caller=caller)
            if fetch
            else self._revocation.stored(asked.chains)
        )
        checks = Checks(tell=True)
        _tell(checks, response, revocation=stored, **against)
        return checks, (*lint.on_response(response, self._trust.anchors, at), *stored.warnings)

    async def explain_request(self, request: InstallationRequest, at: datetime) -> tuple[Checks, tuple[str, ...]]:
        """Every check on a vehicle's request as a delivery makes it, told in full, and the warnings. Nobody is asked.

        What is not known of a vehicle's revocation does not keep a delivery from it, unless the policy says so.
        """
        anchors = self._trust.anchors if self._vehicle_trust is VehicleTrust.CHAIN else None
        asked = AskedLater()
        _tell_request(Checks(tell=True), request, anchors=anchors, revocation=asked, at=at)
        stored = await self._revocation.stored_for_vehicle(asked.chains)
        checks = Checks(tell=True)
        _tell_request(checks, request, anchors=anchors, revocation=stored, at=at)
        return checks, (*lint.on_request(request, self._trust.anchors), *stored.warnings)

    async def held(self, emaid: EMAID | None, pcid: PCID | None) -> list[SignedContract]:
        """Every variant of a contract, or of a vehicle's contracts: for the operator, not for callers."""
        if emaid is not None:
            return await self._store.read(queries.by_emaid(emaid))
        return [] if pcid is None else await self._store.read(queries.by_vehicle(pcid))

    async def withdraw(
        self,
        caller: Caller,
        emaid: EMAID,
        at: datetime,
        *,
        revoke: bool = True,
        reason: RevocationReason = RevocationReason.CESSATION_OF_OPERATION,
    ) -> None:
        """Remove a contract with all its variants, its certificates revoked first where an operator CA issued them.

        Raises NotAuthorised, NotFound, Unavailable; UpstreamError when they cannot be revoked, and nothing is removed.
        """
        authorise(caller.party, Operation.WITHDRAW, emaid)
        standing = _standing(caller, Operation.WITHDRAW, emaid)
        if revoke and self._pki is not None:
            if standing is not None:
                await self._store.read(check_standing(standing))  # What a PKI has revoked stays revoked.
            await self._pki.revoke_issued(await self._store.read(queries.by_emaid(emaid)), reason)
        await self._store.write(
            audit.with_audit(
                queries.withdraw(emaid, self._clock),
                lambda gone: [_entry(caller, Action.CONTRACT_WITHDRAWN, gone.at, emaid=emaid, pcid=gone.pcid)],
                standing,
            )
        )
        self._outlet.changed()

    async def forget_vehicle(self, event: VehicleEvent, at: datetime, trace_id: str) -> list[EMAID]:
        """Remove the contracts that a change of a vehicle's certificate makes worthless. Returns those that are gone.

        Raises Unavailable: send the event again.
        """
        if self._pcp is not None:
            self._pcp.invalidate(event.pcid)
        current = None
        bound = await self._store.read(vehicles.list_bindings(event.pcid))
        if event.change is Change.UPDATED and bound:
            try:
                current = await self._pcp.fetch_chain(event.pcid) if self._pcp is not None else None
            except UpstreamError as exc:
                sentence = "The Provisioning Certificate Pool cannot be asked for the vehicle's key now."
                raise Unavailable(sentence) from exc
        why, stale = event.change.value, made_stale(event, current, at)
        return await self._store.write(
            vehicles.invalidate_with_audit(
                event.pcid, self._clock, stale, actor=audit.PCP, why=why, trace_id=trace_id, kind=TOLD_AS[event.change]
            )
        )

    async def set_default(self, caller: Caller, emaid: EMAID, pcid: PCID, at: datetime) -> None:
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

    async def contract_data_by_emaid(
        self, caller: Caller, emaid: EMAID, namespace: Namespace, root: Fingerprint | None, at: datetime
    ) -> list[tuple[SignedContract, str | None]]:
        """The variants of a contract, newest first, each with what keeps it from its vehicle, if anything does.

        Raises NotAuthorised, NotFound.
        """
        authorise(caller.party, Operation.GET_CONTRACT_DATA_BY_EMAID, emaid)
        stored = await self._store.read(queries.by_emaid(emaid))
        found = _matching(stored, namespace, root, "The contract for the given EMAID not found.")
        vehicle = await self._store.read(queries.by_vehicle(found[0].pcid))
        keys = [key for contract in (*found, *vehicle) for key in contract.certificates or ()]
        known = await self._store.read(evidence.load(keys, self._revocation.rules))
        key = None
        if self._pcp is not None and any(contract.provisioning_key for contract in found):
            current = await self._pcp.get_chain(found[0].pcid)
            key = None if current is None else current.key_for(namespace)

        def good(contract: SignedContract) -> bool:
            return self._problem(contract, known, key, at) is None

        def problem(contract: SignedContract) -> str | None:
            found = self._problem(contract, known, key, at)
            if found is not None:
                return str(found)
            return contracts.not_selected_reason(contract, vehicle, at, deliverable=good, no_default=self._no_default)

        return [(contract, problem(contract)) for contract in found]

    async def contract_data_by_pcid(self, caller: Caller, pcid: PCID, namespace: Namespace) -> list[SignedContract]:
        """The variants of a vehicle's contracts, newest first. Raises NotAuthorised, NotFound."""
        authorise(caller.party, Operation.GET_CONTRACT_DATA_BY_PCID, pcid)
        stored = await self._store.read(queries.by_vehicle(pcid))
        return _matching(stored, namespace, None, "No contract for the given PCID found.")

    async def signed_contract_data(
        self,
        caller: Caller,
        emaid: EMAID,
        pcid: PCID,
        *,
        session_id: bytes,
        namespace: Namespace,
        root: Fingerprint | None,
        at: datetime,
        handed_out: bool = True,
    ) -> list[Answer]:
        """A contract's responses for a vehicle's maker, newest first.

        session_id: put into the responses; without one they are as they were published. handed_out: the caller gets
        them, which is an event. Raises NotAuthorised, NotFound.
        """
        authorise(caller.party, Operation.GET_SIGNED_CONTRACT_DATA, pcid)
        stored = await self._store.read(queries.by_vehicle_and_emaid(pcid, emaid))
        found = _matching(stored, namespace, root, "The contract for the given EMAID not found.")
        if handed_out:
            self._outlet.handed_out(found, at)
        return [Answer(c, verify.with_session(c, session_id, at) if session_id else c.response) for c in found]

    async def cleanse(self, at: datetime, *, actor: str = audit.POOL, dry_run: bool = False) -> list[Cleansed]:
        """As `purge`, with everything that was removed in one list."""
        found = {each.emaid: each async for each in self.purge(at, actor=actor, dry_run=dry_run)}
        return list(found.values())

    async def purge(self, at: datetime, *, actor: str = audit.POOL, dry_run: bool = False) -> AsyncIterator[Cleansed]:
        """Remove contracts that have expired, after a grace period, and those whose certificate is revoked.

        Each as soon as it is found, in portions, so that nothing else waits for long. actor: who has it done, for the
        audit trail. dry_run: only say what would be removed. Raises Unavailable.
        """
        before = at - self._cleanse_grace
        async for emaid in purging.candidates(self._store, before):
            if dry_run:
                found = await self._store.read(queries.purge_reason(emaid, before))
            else:
                gone = await self._store.write(_cleanse(emaid, before, self._clock, actor))
                found = (gone.pcid, gone.reason or "") if gone is not None else None
            if found is not None:
                yield Cleansed(emaid, *found)
        if not dry_run:
            await purging.remove_idle_vehicles(self._store, at - _IDLE_VEHICLE)

    async def erase(
        self, named: EMAID | PCID, at: datetime, *, actor: str, tell: bool = True, dry_run: bool = False
    ) -> Erased:
        """Remove everything that is kept about a contract or a vehicle. For the operator, not for callers.

        tell: the car maker learns which contracts went. What workers remember of a vehicle from the Provisioning
        Certificate Pool goes within a minute. Raises Unavailable.
        """
        keys = await self._certificates_of(named)
        rows = await self._audit_rows_naming(named)
        change = erasure.erase(named, keys, at, actor, notify=tell, dry_run=dry_run, rows=rows)
        try:
            return await self._store.write(change)
        except DryRun as rehearsed:
            return rehearsed.erased

    async def _audit_rows_naming(self, named: EMAID | PCID) -> erasure.AuditRows:
        """Look through the audit trail in portions, before the transaction that blanks rows of it."""
        found: list[AuditRow] = []
        ends = await self._store.read(audit.shard_lengths())
        for lane, last in ends.items():
            for after in range(0, last, AUDIT_PORTION):
                until = min(after + AUDIT_PORTION, last)
                found += await self._store.read(audit.rows_naming_in_shard(named, lane, after, until))
        return erasure.AuditRows(tuple(found), ends)

    async def _certificates_of(self, named: EMAID | PCID) -> set[erasure.Key]:
        """Watched certificates that were made out to a contract, or to a vehicle and its contracts.

        They are looked through one by one.
        """
        names: list[EMAID | PCID] = [named]
        if isinstance(named, PCID):
            names += {contract.emaid for contract in await self._store.read(queries.by_vehicle(named))}
        found: set[erasure.Key] = set()
        after = ("", "")
        while part := await self._store.read(erasure.list_watched(after)):
            found |= {(each[0], each[1]) for each in part if any(_made_out_to(each[2], name) for name in names)}
            after = part[-1][:2]
        return found


def _made_out_to(der: bytes, named: EMAID | PCID) -> bool:
    """Whether a certificate's common name is the id, in whatever form it is written there."""
    if named.encode() not in der.upper().replace(b"-", b""):
        return False
    try:
        return type(named).parse(Certificate.load(der).subject_cn) == named
    except CCPError:
        return False


def _cleanse(emaid: EMAID, before: datetime, clock: Callable[[], datetime], actor: str) -> Query[Removed | None]:
    def tell(gone: Removed | None) -> list[Entry]:
        if gone is None:
            return []
        subject = {"emaid": emaid, "pcid": gone.pcid, "reason": gone.reason}
        return [Entry(gone.at, actor, Action.CONTRACT_CLEANSED, subject)]

    return audit.with_audit(queries.purge(emaid, before, clock), tell)


def _entry(caller: Caller, action: Action, at: datetime, **subject: str) -> Entry:
    """What the audit trail says of a caller's change."""
    return Entry(at, caller.party.client_id, action, subject, trace_id=caller.trace_id)


def _standing(caller: Caller, operation: Operation, subject: EMAID | PCID) -> Standing | None:
    return caller.standing(lambda party: authorise(party, operation, subject))


def _tell(checks: Checks, response: InstallationResponse, **against: Any) -> None:
    """Run every check on a response and leave what came of it in `checks`."""
    with contextlib.suppress(VerificationError):
        verify.verify_response(response, checks=checks, **against)


def _tell_request(checks: Checks, request: InstallationRequest, **against: Any) -> None:
    with contextlib.suppress(VerificationError):
        verify.verify_request(request, checks=checks, **against)


@batchable
def _waiting(
    pcid: PCID, namespace: Namespace, vehicle: tuple[Key, ...], rules: Rules, recent: RevocationCache
) -> Query[tuple[list[SignedContract], Known]]:
    """A vehicle's contracts as `queries.waiting` has them, and what is known of its certificates and of theirs."""
    stored = yield from queries.for_delivery(pcid, namespace)
    chains = (vehicle, *(each.certificates or () for each in stored))
    # Each begins with a leaf that nobody else has.
    own = [key for chain in chains for key in chain[:1]]
    shared = [key for chain in chains for key in chain[1:]]
    known = yield from evidence.load_cached(own, shared, rules, recent)
    return stored, known


def _matching(
    stored: list[SignedContract], namespace: Namespace, root: Fingerprint | None, otherwise: str
) -> list[SignedContract]:
    found = [c for c in stored if c.namespace is namespace and (root is None or c.root_fingerprint == root)]
    if not found:
        raise NoContract(otherwise)
    return sorted(found, key=lambda contract: contract.updated_at, reverse=True)
