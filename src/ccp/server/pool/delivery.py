"""Delivery: answer a vehicle's CertificateInstallationReq with its contracts.

    verify the request -> look up contracts and revocation state -> select -> put the session id into the response

The request is verified before anything is looked up. One query returns the vehicle's contracts together with the
revocation state of its certificates and theirs. `ccp.server.domain.contracts` selects what is delivered. If nothing is
deliverable here and the caller allows it, other pools are asked (`ccp.server.pool.peers`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import structlog

from ccp import verify
from ccp.errors import (
    CCPError,
    ChainError,
    ExpiredError,
    NoContract,
    NotFound,
    RevokedError,
    TooLong,
    Unavailable,
    VerificationError,
    strip_tracebacks,
)
from ccp.errors.codes import ErrorCode
from ccp.exi.base64_text import message_bytes
from ccp.ids import EMAID, PCID, Namespace
from ccp.server.domain import contracts
from ccp.server.domain.authorization import Operation, authorise
from ccp.server.domain.contracts import NoDefaultPolicy, RootMatch, SignedContract
from ccp.server.domain.parties import Caller
from ccp.server.domain.subscriptions import UndeliverableReason
from ccp.server.events import EventSink
from ccp.server.external.provisioning_pool import key_fingerprint
from ccp.server.external.services import ExternalServices
from ccp.server.pool.peers import Peers
from ccp.server.pool.turns import OneByOne, Turns
from ccp.server.settings import Settings, VehicleTrust
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query, batchable
from ccp.server.storage.queries import contracts as queries
from ccp.server.storage.queries import revocation as evidence
from ccp.server.storage.queries.contract_notices import Undeliverable
from ccp.server.storage.queries.revocation import RevocationCache
from ccp.server.trust.anchors import TrustStore
from ccp.server.trust.revocation import RevocationService
from ccp.verify import InstallationRequest, VerifiedInstallationRequest
from ccp.x509.revocation_evidence import CertificateRef
from ccp.x509.revocation_policy import DeferredRevocation, RevocationPolicy, RevocationState, check_refs

if TYPE_CHECKING:
    from ccp.server.tracing.spans import Spans

_log = structlog.get_logger("ccp.server.pool.delivery")

DELIVERY_TIMEOUT: Final = 3.5
"""Seconds from the arrival of a request's head to its response, not counting the time in which its body arrives.

A vehicle waits five seconds and its charging station 4.5; writing and transmitting the response take the rest.
"""
_TIMED_OUT: Final = "The pool cannot answer in time now; try again."
_NO_EVIDENCE: Final = "The revocation status of the vehicle's contract is not known now; try again."


@dataclass(frozen=True, slots=True)
class DeliveredContract:
    """A contract and the response message that delivers it.

    response: EXI of the CertificateInstallationRes, with the session id of the request. remaining: how many contracts
    follow, if they are delivered one by one.
    """

    contract: SignedContract
    response: bytes
    remaining: int = 0


@dataclass(frozen=True, slots=True)
class NegativeResponse:
    """A request that was decoded but gets no contract, and the negative response message for it.

    namespace: of the message. pcid: None if the vehicle's certificate names none. response: EXI. reason: Unavailable
    for a temporary failure.
    """

    namespace: Namespace
    pcid: PCID | None
    response: bytes
    reason: CCPError


class Delivery:
    """Answers vehicles' requests."""

    def __init__(
        self,
        store: Store,
        trust: TrustStore,
        revocation: RevocationService,
        peers: Peers,
        external: ExternalServices,
        settings: Settings,
        events: EventSink,
    ) -> None:
        """events: is notified of each delivered contract."""
        self._store = store
        self._trust = trust
        self._revocation = revocation
        self._peers = peers
        self._provisioning_pool = external.provisioning_pool
        self._events = events
        self._vehicle_trust: VehicleTrust = settings.vehicle_trust
        self._no_default: NoDefaultPolicy = settings.no_default_policy
        self._root_match: RootMatch = settings.root_match
        self._turns = Turns(store, timedelta(seconds=settings.ocpp_repetition_time))

    async def deliver(
        self,
        caller: Caller,
        namespace: Namespace,
        message: str | InstallationRequest,
        *,
        broadcast: bool,
        now: datetime,
        max_one: bool = False,
        detect_edition: bool = False,
        one_by_one: OneByOne | None = None,
        target_pool: str | None = None,
        deadline: float | None = None,
    ) -> list[DeliveredContract] | NegativeResponse:
        """Answer a vehicle's CertificateInstallationReq.

        message: EXI in Base64, or the request that it contains. broadcast: whether other pools may be asked. max_one:
        return one contract at most, even if the vehicle takes more, because the caller can forward only one.
        one_by_one: return the next contract, and tell the vehicle how many follow. detect_edition: where the message is
        of another edition than `namespace` says, the message decides, because some callers state the same one for every
        vehicle; otherwise such a message is an EXIError. target_pool: party id of another pool that the request is
        addressed to; only that pool is asked. deadline: time limit by the event loop's clock; None: `DELIVERY_TIMEOUT`
        from now.
        Raises EXIError, NotAuthorised. A temporary failure is returned as a NegativeResponse, because charging stations
        forward nothing but a message.
        """
        authorise(caller.party, Operation.DELIVER)
        if isinstance(message, str):
            request = verify.read_request(message_bytes(message), None if detect_edition else namespace)
        else:
            request = message
        if request.namespace is not namespace:
            _log.info(
                "edition of request detected",
                caller=caller.party.client_id,
                stated=namespace.value,
                detected=request.namespace.value,
            )
            namespace = request.namespace
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + DELIVERY_TIMEOUT
        try:
            async with asyncio.timeout_at(deadline) as limit:
                return await self._find(caller, request, broadcast, now, max_one, one_by_one, target_pool)
        except TimeoutError as exc:
            if not limit.expired():
                raise
            reason: CCPError = Unavailable(_TIMED_OUT, code=ErrorCode.DELIVERY_TIMEOUT)
            reason.__cause__ = exc
        except (VerificationError, NotFound, TooLong, Unavailable) as exc:
            reason = exc
        negative = verify.negative_response(namespace, request.session_id, reason, now)
        return NegativeResponse(namespace, verify.claimed_pcid(request), negative, strip_tracebacks(reason))

    async def _find(
        self,
        caller: Caller,
        request: InstallationRequest,
        broadcast: bool,
        now: datetime,
        max_one: bool,
        one_by_one: OneByOne | None,
        target_pool: str | None,
    ) -> list[DeliveredContract]:
        """Return what `deliver` returns. Raises VerificationError, NotFound, TooLong, Unavailable."""
        # Yield once so that concurrent requests run in phases: all are decoded, then all are verified. This keeps the
        # CPU caches warm (docs/performance.md).
        await asyncio.sleep(0)
        verified = await self._verify(request, now)
        refs = self._revocation.refs_of(verified.chain)
        query = _contracts_with_revocation(
            verified.pcid, request.namespace, refs, self._revocation.rules, self._revocation.recent
        )
        stored, state = await self._store.read(query)
        if verified.chain is not None:
            self._revocation.evaluate_vehicle(verified.chain, refs, state, now)
        await self._check_current_key(verified)
        if target_pool is None:
            try:
                return await self._select(verified, stored, state, broadcast, now, max_one, one_by_one, caller)
            except (NotFound, TooLong, Unavailable) as exc:
                exc.concerned = tuple(sorted({str(contract.emaid) for contract in stored}))
                raise
        if found := await self._ask_peers(verified, caller, now, max_one, one_by_one, target_pool):
            return found
        raise NoContract(
            "The pool that the request is for has nothing for the vehicle now.",
            code=ErrorCode.NO_CONTRACT_AT_ADDRESSED_POOL,
        )

    def trace(self, spans: Spans) -> None:
        """Give the verification of requests, and the requests to other pools, spans from now on."""
        self._verify = spans.traced("verify request", self._verify)  # type: ignore[method-assign]

    async def _verify(self, request: InstallationRequest, now: datetime) -> VerifiedInstallationRequest:
        """Verify a vehicle's request.

        A request of ISO 15118-2 carries the vehicle's leaf certificate only. If its intermediates are not known here,
        the Provisioning Certificate Pool is asked for them.
        """
        anchors = self._trust.anchors if self._vehicle_trust is VehicleTrust.CHAIN else None
        try:
            return verify.check_request(request, anchors=anchors, revocation=DeferredRevocation(), now=now)
        except ChainError as exc:
            # The signature is verified before the chain, so only a holder of the vehicle's key can cause this lookup.
            claimed = (
                None if request.sub_certificates or self._provisioning_pool is None else verify.claimed_pcid(request)
            )
            if self._provisioning_pool is None or claimed is None or isinstance(exc, ExpiredError):
                raise
            chain = await self._provisioning_pool.get_chain(claimed)
            if chain is None:
                raise
            completed = replace(request, sub_certificates=tuple(one.der for one in chain.sub_cas))
            return verify.check_request(completed, anchors=anchors, revocation=DeferredRevocation(), now=now)

    async def _check_current_key(self, verified: VerifiedInstallationRequest) -> None:
        """Refuse a vehicle whose provisioning certificate is known to have been replaced. Raises ChainError."""
        if self._provisioning_pool is None:
            return
        used, namespace = key_fingerprint(verified.leaf), verified.request.namespace
        for fresh in (False, True):  # A cached chain may be older than the vehicle's certificate.
            current = await self._provisioning_pool.get_chain(verified.pcid, fresh=fresh)
            if current is None or current.key_for(namespace) in (None, used):
                return
        error = ChainError(
            "The provisioning certificate is not the vehicle's current one.",
            code=ErrorCode.PROVISIONING_CERTIFICATE_REPLACED,
        )
        error.at_check("current provisioning certificate of the vehicle")
        raise error

    async def _select(
        self,
        verified: VerifiedInstallationRequest,
        stored: list[SignedContract],
        state: RevocationState,
        broadcast: bool,
        now: datetime,
        max_one: bool,
        one_by_one: OneByOne | None,
        caller: Caller,
    ) -> list[DeliveredContract]:
        """Select the contracts to deliver, from this pool or, if it has none, from others."""
        request = verified.request
        bound = any(contract.provisioning_key for contract in stored)
        key = key_fingerprint(verified.leaf) if bound else None
        policy = self._revocation.rules
        unknown_status: list[CCPError] = []
        refused: list[tuple[SignedContract, CCPError]] = []

        def deliverable(contract: SignedContract) -> bool:
            reason = undeliverable_reason(contract, state, policy, key, now)
            if reason is not None:
                refused.append((contract, reason))
                _log.warning("contract not deliverable", owner=contract.emaid.provider, reason=str(reason))
            if isinstance(reason, Unavailable):
                unknown_status.append(reason)
            return reason is None

        def deliverable_if_not_revoked(contract: SignedContract) -> bool:
            return isinstance(undeliverable_reason(contract, state, policy, key, now), Unavailable | None)

        try:
            try:
                selected = self._selected(request, stored, now, deliverable, max_one)
            finally:
                if refused:
                    self._report_undeliverable(stored, refused, now)
        except NotFound as nothing:
            not_asked: tuple[str, ...] = ()
            try:
                if broadcast and (found := await self._ask_peers(verified, caller, now, max_one, one_by_one)):
                    return found
            except Unavailable as limited:
                not_asked = limited.messages
            if unknown_status:
                # Raises NotFound if there is nothing to deliver even with good revocation status. Otherwise the
                # contract may be deliverable soon, so the failure is temporary.
                self._selected(request, stored, now, deliverable_if_not_revoked, max_one)
                raise Unavailable(_NO_EVIDENCE, code=ErrorCode.REVOCATION_STATUS_UNKNOWN) from unknown_status[0]
            if not_asked:  # The response states that only this pool was searched.
                raise type(nothing)(*nothing.messages, *not_asked, code=nothing.code) from nothing
            raise
        if one_by_one is not None:
            selected = await self._turns.next(verified, [contract for contract, _ in selected], one_by_one, caller, now)
        self._events.contracts_delivered((contract for contract, _ in selected), now)
        return [
            DeliveredContract(c, verify.with_session(c, request.session_id, now, remaining), remaining or 0)
            for c, remaining in selected
        ]

    def _report_undeliverable(
        self, stored: list[SignedContract], refused: list[tuple[SignedContract, CCPError]], now: datetime
    ) -> None:
        """Tell providers of contracts of which no variant can be delivered. refused: variants of one namespace."""
        reasons: dict[EMAID, list[CCPError]] = {}
        for contract, reason in refused:
            reasons.setdefault(contract.emaid, []).append(reason)
        namespace, pcid = refused[0][0].namespace, refused[0][0].pcid
        for emaid, found in reasons.items():
            variants = [each for each in stored if each.emaid == emaid and each.namespace is namespace]
            if sum(each.valid_at(now) for each in variants) > len(found):
                continue  # Another variant can be delivered.
            if any(isinstance(reason, Unavailable) for reason in found):
                continue  # Not known yet.
            is_revoked = any(isinstance(reason, RevokedError) for reason in found)
            why = UndeliverableReason.REVOKED if is_revoked else UndeliverableReason.STALE
            newest = max(each.updated_at for each in variants)
            self._events.contract_undeliverable(Undeliverable(emaid, pcid, namespace, why, newest), now)

    def _selected(
        self,
        request: InstallationRequest,
        stored: list[SignedContract],
        now: datetime,
        deliverable: contracts.IsDeliverable,
        max_one: bool,
    ) -> Sequence[tuple[SignedContract, int | None]]:
        """The contracts to deliver, each with the number that remain after it (ISO 15118-20). Raises NotFound."""
        return contracts.select(
            request,
            stored,
            now,
            deliverable=deliverable,
            max_one=max_one,
            no_default=self._no_default,
            root_match=self._root_match,
        )

    async def _ask_peers(
        self,
        verified: VerifiedInstallationRequest,
        caller: Caller,
        now: datetime,
        max_one: bool,
        one_by_one: OneByOne | None,
        target_pool: str | None = None,
    ) -> list[DeliveredContract]:
        """What other pools, or `target_pool` alone, hold for the vehicle. Empty if they hold nothing."""
        found = await self._peers.ask(verified, caller, now, target_pool)
        session_id = verified.request.session_id
        if one_by_one is not None and found:
            ordered = contracts.prioritized([contract for contract, _ in found], verified.request.prioritized_emaids)
            one = await self._turns.next(verified, ordered, one_by_one, caller, now)
            return [DeliveredContract(c, verify.with_session(c, session_id, now, left), left or 0) for c, left in one]
        if max_one and found:
            contract = found[0][0]
            return [DeliveredContract(contract, verify.with_session(contract, session_id, now, 0))]
        return [DeliveredContract(*item) for item in found]


def undeliverable_reason(
    contract: SignedContract, state: RevocationState, policy: RevocationPolicy, key: str | None, now: datetime
) -> CCPError | None:
    """Why a stored contract cannot be delivered now, from stored revocation state only. None if it can.

    key: fingerprint of the vehicle's current provisioning key, None if it is not known. Returns Unavailable if the
    policy requires revocation status that is missing.
    """
    if key is not None and contract.provisioning_key not in (None, key):
        return ChainError("The contract was made for another provisioning key than the vehicle's current one.")
    try:
        check_refs(contract.certificates or (), state, policy, now)
    except (RevokedError, Unavailable) as exc:
        return exc
    return None


@batchable
def _contracts_with_revocation(
    pcid: PCID,
    namespace: Namespace,
    vehicle: tuple[CertificateRef, ...],
    policy: RevocationPolicy,
    cache: RevocationCache,
) -> Query[tuple[list[SignedContract], RevocationState]]:
    """A vehicle's contracts, and the revocation state of its certificates and of theirs."""
    stored = yield from queries.for_delivery(pcid, namespace)
    chains = (vehicle, *(contract.certificates or () for contract in stored))
    # Leaf certificates belong to one vehicle or contract; issuers are shared and therefore cached.
    leaves = [ref for chain in chains for ref in chain[:1]]
    issuers = [ref for chain in chains for ref in chain[1:]]
    state = yield from evidence.load_cached(leaves, issuers, policy, cache)
    return stored, state
