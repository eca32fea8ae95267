"""Other pools. This release has none: a broadcast finds nothing more, no request can be addressed to another pool."""

from __future__ import annotations

from typing import Protocol

from ccp.contracts import SignedContract
from ccp.errors import NotFound
from ccp.installation import VerifiedInstallationRequest


class Peers(Protocol):
    async def ask(self, request: VerifiedInstallationRequest) -> list[tuple[SignedContract, bytes]]:
        """What other pools hold for the vehicle, answered for its session and checked; empty when they hold nothing."""

    def route(self, party_id: str) -> None:
        """Find the pool that a request is addressed to. Raises NotFound."""


class NoPeers:
    async def ask(self, request: VerifiedInstallationRequest) -> list[tuple[SignedContract, bytes]]:
        return []

    def route(self, party_id: str) -> None:
        raise NotFound("No pool with the id in OPNC-to-party-id is known here.")
