"""Whether what another pool answers holds here, and how well it is known to be for the vehicle.

An answer counts only when it is good for this vehicle as far as anybody but the vehicle can tell: a positive message,
of this session, with the provisioning service's signature and both chains to roots that are trusted here.

No part of a message proves which vehicle its contract is for: the signature covers EMAID, contract chain and keys, and
only the vehicle can tell whether it is able to decrypt. So answers have a `Standing` by what else is known.
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
from ccp.x509.revocation_policy import AskedLater

_log = structlog.get_logger("ccp.server.pool.peers")

_MAX_ITEMS: Final = 16  # Contracts of an answer that are verified.
_VERIFY_COST: Final = 1_500
"""Estimated microseconds for one contract: an answer with many contracts takes a turn of the event loop for each."""


class Standing(IntEnum):
    """How well it is known that an answer's contracts are the vehicle's. The higher one is preferred.

    CONTRADICTED: a contract is bound to another vehicle here. UNNAMED: the answer does not name the vehicle, as always
    in the OPCP dialect, or a contract is of another provider than those that the peer is registered for. NAMED: the
    answer names it. REGISTERED: the operator has registered the peer for the contracts' providers.
    """

    CONTRADICTED = 0
    UNNAMED = 1
    NAMED = 2
    REGISTERED = 3


def best_of(peer: Peer) -> Standing:
    """The best that an answer of a peer can be."""
    if peer.provider_ids:
        return Standing.REGISTERED
    return Standing.NAMED if peer.dialect == Dialect.OPNC else Standing.UNNAMED


class Found(NamedTuple):
    """What a peer holds for a vehicle: contracts, each with its answer."""

    standing: Standing
    items: list[tuple[SignedContract, bytes]]


class PeerAnswers:
    """Checks answers against what is trusted and stored here."""

    def __init__(
        self,
        store: Store,
        anchors: Callable[[], TrustAnchors],
        refuse_revoked: Callable[[VerifiedChain, datetime], Awaitable[None]],
        budget: LoopBudget,
    ) -> None:
        """anchors: what is trusted now. refuse_revoked: refuses a chain that is known to be revoked.

        budget: of the event loop, that verifying is paid from.
        """
        self._store = store
        self._anchors = anchors
        self._refuse_revoked = refuse_revoked
        self._budget = budget

    async def check(self, answer: Delivered, request: VerifiedInstallationRequest, at: datetime, peer: Peer) -> Found:
        """The items that hold: what is wrong with one contract of a vehicle keeps no other from it.

        Where none holds, raises what the first was refused for: MismatchError for another session or vehicle, and what
        `verify_response` raises.
        """
        namespace, session_id = request.request.namespace, request.request.session_id
        maximum = 1 if namespace is Namespace.ISO2 else request.request.maximum
        taken: list[SignedResponse] = []
        good: list[SignedContract] = []
        refused: list[CCPError] = []
        for item in answer.contracts[:_MAX_ITEMS]:
            if len(good) >= maximum:
                break
            try:
                good.append(await self.verified(item, namespace, request.pcid, at, session_id=session_id))
            except (InputError, VerificationError) as exc:
                refused.append(exc)
                continue
            taken.append(item)
        if refused and not good:
            raise refused[0]
        for each in refused:
            _log.warning("peer's answer not taken", outcome=each.code, reason=str(each), peer=peer.party_id)
        standing = await self._standing(good, peer, named=all(item.pcid is not None for item in taken))
        if namespace is Namespace.ISO2:
            return Found(standing, [(contract, contract.response) for contract in good])
        # What is left is counted anew: the peer may have sent more than the vehicle takes.
        return Found(
            standing,
            [
                (contract, verify.with_session(contract, session_id, at, len(good) - place))
                for place, contract in enumerate(good, start=1)
            ],
        )

    async def _standing(self, contracts: Sequence[SignedContract], peer: Peer, *, named: bool) -> Standing:
        """named: the answer names the vehicle with each contract."""
        for contract in contracts:
            if await self._store.read(find_vehicle(contract.emaid)) not in (None, contract.pcid):
                return Standing.CONTRADICTED
        if peer.provider_ids:
            held = all(contract.emaid.provider in peer.provider_ids for contract in contracts)
            return Standing.REGISTERED if held else Standing.UNNAMED
        return Standing.NAMED if named else Standing.UNNAMED

    async def verified(
        self,
        item: SignedResponse,
        namespace: Namespace,
        pcid: PCID,
        at: datetime,
        *,
        session_id: bytes | None,
        root: Fingerprint | None = None,
    ) -> SignedContract:
        """As `Peers.verified`."""
        if item.pcid not in (None, pcid):
            raise MismatchError("The answer is for another vehicle.")
        await self._budget.spend(_VERIFY_COST)
        response = verify.read_response(item.message, namespace)
        if session_id is not None and response.parsed.message.Header.SessionID != session_id:
            raise MismatchError("The answer is for another session.")
        asked = AskedLater()
        verified = verify.verify_response(
            response, emaid=item.emaid, root=root, anchors=self._anchors(), revocation=asked, at=at
        )
        # As with the vehicle's own chain: what is known to be revoked is not handed on; what is not known is the peer's
        # to answer for now, and is asked for afterwards.
        for chain in asked.chains:
            await self._refuse_revoked(chain, at)
        return signed_contract(verified, pcid, item.metadata, at)
