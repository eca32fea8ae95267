"""Verification of other pools' answers, and their rank.

An answer counts only if it verifies here: a positive message of this session, with the provisioning service's signature
and both chains up to roots that this pool trusts.

No part of a message proves which vehicle its contract is for: the signature covers EMAID, contract chain and keys, and
only the vehicle can tell whether it is able to decrypt. So an answer has an `AnswerRank` by what else is known.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from enum import IntEnum
from typing import Final, NamedTuple

import structlog

from ccp import verify
from ccp.client import Delivered, Dialect, SignedResponse
from ccp.errors import CCPError, InputError, MismatchError, VerificationError
from ccp.ids import PCID, Fingerprint, Namespace
from ccp.server.domain.contracts import SignedContract, signed_contract
from ccp.server.runtime.loop_budget import LoopBudget
from ccp.server.storage import Store
from ccp.server.storage.queries.contracts import find_vehicle
from ccp.server.storage.queries.peers import Peer
from ccp.verify import VerifiedInstallationRequest
from ccp.x509.path_validation import TrustAnchors, VerifiedChain
from ccp.x509.revocation_policy import DeferredRevocation

_log = structlog.get_logger("ccp.server.pool.peers")

_MAX_VERIFIED: Final = 16  # Contracts of one answer.
_VERIFY_COST: Final = 1_500
"""Estimated microseconds for one contract, so that an answer with many contracts does not block the event loop."""


class AnswerRank(IntEnum):
    """How well it is known that an answer's contracts are for the vehicle. The highest rank wins.

    CONTRADICTED: a contract is bound to another vehicle here. UNNAMED: the answer does not name the vehicle, as always
    in the OPCP dialect, or a contract is of another provider than those that the peer is registered for. NAMED: the
    answer names it. REGISTERED: the operator has registered the peer for the contracts' providers.
    """

    CONTRADICTED = 0
    UNNAMED = 1
    NAMED = 2
    REGISTERED = 3


def best_rank_of(peer: Peer) -> AnswerRank:
    """The highest rank that an answer of the peer can have."""
    if peer.provider_ids:
        return AnswerRank.REGISTERED
    return AnswerRank.NAMED if peer.dialect == Dialect.OPNC else AnswerRank.UNNAMED


class PeerAnswer(NamedTuple):
    """A peer's verified answer for a vehicle. items: contracts, each with its response message (EXI)."""

    rank: AnswerRank
    items: list[tuple[SignedContract, bytes]]


class PeerAnswers:
    """Verifies answers against this pool's trust anchors and contracts."""

    def __init__(
        self,
        store: Store,
        anchors: Callable[[], TrustAnchors],
        refuse_revoked: Callable[[VerifiedChain, datetime], Awaitable[None]],
        budget: LoopBudget,
    ) -> None:
        """anchors: returns the trust anchors. refuse_revoked: raises RevokedError for a chain known to be revoked.

        budget: of the event loop; verifications are debited to it.
        """
        self._store = store
        self._anchors = anchors
        self._refuse_revoked = refuse_revoked
        self._budget = budget

    async def check(
        self, answer: Delivered, request: VerifiedInstallationRequest, now: datetime, peer: Peer
    ) -> PeerAnswer:
        """Verify an answer. Contracts that do not verify are left out.

        Raises the error of the first contract if none verifies: MismatchError for another session or vehicle, and what
        `check_response` raises.
        """
        namespace, session_id = request.request.namespace, request.request.session_id
        max_contracts = 1 if namespace is Namespace.ISO2 else request.request.max_chains
        accepted: list[SignedResponse] = []
        verified: list[SignedContract] = []
        errors: list[CCPError] = []
        for item in answer.contracts[:_MAX_VERIFIED]:
            if len(verified) >= max_contracts:
                break
            try:
                verified.append(await self.verify_contract(item, namespace, request.pcid, now, session_id=session_id))
            except (InputError, VerificationError) as exc:
                errors.append(exc)
                continue
            accepted.append(item)
        if errors and not verified:
            raise errors[0]
        for error in errors:
            _log.warning("peer answer rejected", outcome=error.outcome, reason=str(error), peer=peer.party_id)
        rank = await self._rank(verified, peer, named=all(item.pcid is not None for item in accepted))
        if namespace is Namespace.ISO2:
            return PeerAnswer(rank, [(contract, contract.response) for contract in verified])
        # The number of remaining contracts is set anew: the peer may have sent more than the vehicle takes.
        return PeerAnswer(
            rank,
            [
                (contract, verify.with_session(contract, session_id, now, len(verified) - place))
                for place, contract in enumerate(verified, start=1)
            ],
        )

    async def _rank(self, contracts: Sequence[SignedContract], peer: Peer, *, named: bool) -> AnswerRank:
        """named: whether the answer names the vehicle with each contract."""
        for contract in contracts:
            if await self._store.read(find_vehicle(contract.emaid)) not in (None, contract.pcid):
                return AnswerRank.CONTRADICTED
        if peer.provider_ids:
            registered = all(contract.emaid.provider in peer.provider_ids for contract in contracts)
            return AnswerRank.REGISTERED if registered else AnswerRank.UNNAMED
        return AnswerRank.NAMED if named else AnswerRank.UNNAMED

    async def verify_contract(
        self,
        item: SignedResponse,
        namespace: Namespace,
        pcid: PCID,
        now: datetime,
        *,
        session_id: bytes | None,
        root: Fingerprint | None = None,
    ) -> SignedContract:
        """See `Peers.verify_contract`."""
        if item.pcid not in (None, pcid):
            raise MismatchError("The answer is for another vehicle.")
        await self._budget.spend(_VERIFY_COST)
        response = verify.read_response(item.message, namespace)
        if session_id is not None and response.parsed.message.Header.SessionID != session_id:
            raise MismatchError("The answer is for another session.")
        deferred = DeferredRevocation()
        verified = verify.check_response(
            response, emaid=item.emaid, root=root, anchors=self._anchors(), revocation=deferred, now=now
        )
        # As with the vehicle's own chain: a certificate known to be revoked is refused. For unknown status the peer is
        # responsible; the status is fetched afterwards.
        for chain in deferred.chains:
            await self._refuse_revoked(chain, now)
        return signed_contract(verified, pcid, item.metadata, now)
