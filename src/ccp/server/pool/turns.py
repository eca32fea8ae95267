"""Delivery one by one: one contract for each request, to a caller whose response has room for one only (OCPP)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ccp import verify
from ccp.errors import TooLong
from ccp.ids import Namespace
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.deliveries import request_digest
from ccp.server.domain.parties import Caller
from ccp.server.storage import Store
from ccp.server.storage.queries import handed_out
from ccp.verify import InstallationRequest, VerifiedInstallationRequest


@dataclass(frozen=True, slots=True)
class OneByOne:
    """Delivery of one contract for each request; the vehicle repeats its request for the next one.

    key: the same for each attempt to send one request; None if it is not known. max_characters: of a message in Base64.
    """

    key: str | None
    max_characters: int


class Turns:
    """Selects the next of a vehicle's contracts."""

    def __init__(self, store: Store, repetition_time: timedelta) -> None:
        """repetition_time: for which the contracts that a vehicle has got are remembered."""
        self._store = store
        self._repetition_time = repetition_time

    async def next(
        self,
        verified: VerifiedInstallationRequest,
        selected: Sequence[SignedContract],
        one_by_one: OneByOne,
        caller: Caller,
        now: datetime,
    ) -> list[tuple[SignedContract, int | None]]:
        """The next contract whose message the station takes, and how many follow (None for ISO 15118-2).

        selected: in order of delivery, at least one. Of an ISO 15118-20 vehicle with several contracts, the database
        remembers which ones it has got. Raises TooLong, Unavailable.
        """
        request = verified.request
        lengths = {contract.emaid: _characters(contract, request, now) for contract in selected}
        fitting = {c.emaid: c for c in selected if lengths[c.emaid] <= one_by_one.max_characters}
        if not fitting:
            raise TooLong(
                f"The message with the vehicle's contract has {min(lengths.values())} characters in Base64; "
                f"the charging station takes {one_by_one.max_characters}."
            )
        emaids = list(fitting)
        if request.namespace is Namespace.ISO2:
            return [(fitting[emaids[0]], None)]
        if len(emaids) == 1:
            return [(fitting[emaids[0]], 0)]
        turn = await self._store.write(
            handed_out.take_turn(
                verified.pcid,
                caller.party.client_id,
                request_digest(request),
                emaids,
                request.max_chains,
                key=one_by_one.key,
                now=now,
                lifetime=self._repetition_time,
            )
        )
        return [(fitting[turn.emaid], turn.remaining)]


def _characters(contract: SignedContract, request: InstallationRequest, now: datetime) -> int:
    """The length in Base64 of a contract's message for a vehicle's session."""
    return -(-len(verify.with_session(contract, request.session_id, now)) // 3) * 4
