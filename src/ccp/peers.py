"""Other pools: asked together when nothing is found here, or one of them when a request is for it.

An answer counts only when it is good for this vehicle as far as anybody but the vehicle can tell: a positive message,
of this session, with the provisioning service's signature and both chains to roots that are trusted here. The first
one that is wins. Slow and failing peers are left alone for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

import structlog

from ccp import installation
from ccp.breaker import Breaker
from ccp.client import (
    AsyncClient,
    ClientError,
    Credentials,
    Delivered,
    Dialect,
    Limits,
    MalformedAnswerError,
    NoAnswerError,
    Routing,
    SignedResponse,
)
from ccp.contracts import SignedContract
from ccp.errors import CCPError, ConfigurationError, MismatchError, NotFound
from ccp.ids import Namespace
from ccp.installation import VerifiedInstallationRequest
from ccp.parties import Caller, Role
from ccp.pki.evidence import AskedLater
from ccp.pki.paths import TrustAnchors, VerifiedChain
from ccp.settings import Settings
from ccp.store import Store
from ccp.store import peers as questions
from ccp.store.peers import Peer

_log = structlog.get_logger("ccp.peers")

HOP_HEADER: Final = "X-CCP-Hop"
"""Says that a request came from a pool already; such a one is not passed on. Its value is that pool's id."""

_FAILED: Final = (NoAnswerError, MalformedAnswerError)


class Peers(Protocol):
    async def ask(
        self, request: VerifiedInstallationRequest, caller: Caller, at: datetime, to: str | None = None
    ) -> list[tuple[SignedContract, bytes]]:
        """What other pools hold for the vehicle, answered for its session and checked; empty when they hold nothing.

        to: this one alone.
        """

    def route(self, party_id: str) -> str | None:
        """The pool that a request is addressed to; None for this one. Raises NotFound."""


class NoPeers:
    async def ask(
        self, request: VerifiedInstallationRequest, caller: Caller, at: datetime, to: str | None = None
    ) -> list[tuple[SignedContract, bytes]]:
        return []

    def route(self, party_id: str) -> str | None:
        raise NotFound("No pool with the id in OPNC-to-party-id is known here.")


@dataclass(frozen=True, slots=True)
class _Line:
    """A peer and the connection to it."""

    peer: Peer
    client: AsyncClient
    breaker: Breaker


def client_options(peer: Peer, seconds: float) -> dict[str, object]:
    """How a peer is called, as arguments of a client. seconds: for a call, which is not tried again."""
    access: dict[str, object] = {"token": peer.token}
    if peer.token is None:
        if peer.client_id is None or peer.secret is None:
            raise ConfigurationError(f"Peer {peer.party_id} has neither a token nor client credentials.")
        access = {"credentials": Credentials(peer.client_id, peer.secret, peer.token_url, peer.audience)}
    limits = Limits(exchange=seconds, total=seconds, retries=0, octets=1_048_576)
    return {"base_url": peer.base_url, "dialect": Dialect(peer.dialect), "limits": limits, **access}


class PoolPeers:
    """The peers of the store. `refresh` takes over what is registered now."""

    def __init__(
        self,
        store: Store,
        anchors: Callable[[], TrustAnchors],
        check: Callable[[VerifiedChain, datetime], Awaitable[None]],
        settings: Settings,
    ) -> None:
        """anchors: what is trusted now. check: refuses a chain that is known to be revoked."""
        self._store = store
        self._anchors = anchors
        self._check = check
        self._own_id = settings.pool_id
        self._seconds = settings.peer_seconds
        self._lines: dict[str, _Line] = {}

    async def refresh(self) -> None:
        registered = {peer.party_id: peer for peer in await self._store.read(questions.every()) if peer.enabled}
        dropped = [line for name, line in self._lines.items() if registered.get(name) != line.peer]
        kept = {name: line for name, line in self._lines.items() if registered.get(name) == line.peer}
        for name, peer in registered.items():
            if name in kept:
                continue
            try:
                client = AsyncClient(**client_options(peer, self._seconds))  # type: ignore[arg-type]
            except (CCPError, ValueError) as exc:
                _log.warning("peer not usable", peer=name, reason=str(exc))
                continue
            kept[name] = _Line(peer, client, Breaker(time.monotonic))
        self._lines = kept
        for line in dropped:
            await line.client.close()

    async def close(self) -> None:
        lines, self._lines = self._lines, {}
        for line in lines.values():
            await line.client.close()

    def route(self, party_id: str) -> str | None:
        if party_id == self._own_id:
            return None
        if party_id not in self._lines:
            raise NotFound("No pool with the id in OPNC-to-party-id is known here.")
        return party_id

    async def ask(
        self, request: VerifiedInstallationRequest, caller: Caller, at: datetime, to: str | None = None
    ) -> list[tuple[SignedContract, bytes]]:
        if Role.CCP in caller.party.roles:
            return []
        lines = [
            line
            for name, line in self._lines.items()
            if (name == to if to is not None else self._serves(line.peer, request)) and line.breaker.lets_through()
        ]
        tasks = [asyncio.create_task(self._ask_one(line, request, caller, at)) for line in lines]
        if not tasks:
            return []
        try:
            async with asyncio.timeout(self._seconds + 0.1):  # Each ends by itself; this is for what does not.
                for answered in asyncio.as_completed(tasks):
                    if found := await answered:
                        return found
        except TimeoutError:
            pass
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return []

    def _serves(self, peer: Peer, request: VerifiedInstallationRequest) -> bool:
        """Whether a peer may have something for a vehicle: it has contracts under a root that the vehicle lists."""
        known = [anchor for name in peer.v2g_roots if (anchor := self._anchors().find(name)) is not None]
        if len(known) < len(peer.v2g_roots) or not known or not request.request.roots:
            return True
        listed = {root.X509SerialNumber for root in request.request.roots}
        return any(anchor.certificate.serial_number in listed for anchor in known)

    async def _ask_one(
        self, line: _Line, request: VerifiedInstallationRequest, caller: Caller, at: datetime
    ) -> list[tuple[SignedContract, bytes]]:
        """What one peer holds. Whatever is wrong with it is told in the log and is nothing to the others."""
        told = {"peer": line.peer.party_id, "trace_id": caller.trace_id}
        began = time.monotonic()
        try:
            answer = await line.client.deliver(
                request.request.parsed.octets,
                request.request.namespace,
                broadcast=False,
                routing=self._routing(line.peer, caller),
                seconds=self._seconds,
            )
            found = await self._checked(answer, request, at) if isinstance(answer, Delivered) else []
        except ClientError as exc:
            # An answer that refuses is one of a peer that is well; that it knows nothing is even the rule.
            well = exc.status is not None and exc.status < 500 and not isinstance(exc, _FAILED)
            (line.breaker.succeeded if well else line.breaker.failed)()
            _log.info("peer asked", outcome=exc.code, status=exc.status, reason=" ".join(exc.messages), **told)
            return []
        except CCPError as exc:
            line.breaker.failed()
            _log.warning("peer's answer not taken", outcome=exc.code, reason=str(exc), **told)
            return []
        line.breaker.succeeded()
        ms = round((time.monotonic() - began) * 1000, 2)
        _log.info("peer asked", outcome="found" if found else "nothing", ms=ms, **told)
        return found

    def _routing(self, peer: Peer, caller: Caller) -> Routing:
        """Who asked us, and whom we ask."""
        operators = sorted(caller.party.operator_ids)
        hop = ((HOP_HEADER, self._own_id or "unnamed"),)
        if Role.CPO in caller.party.roles and operators:
            return Routing("cpo", operators[0], "ccp", peer.party_id, hop)
        return Routing(None, None, "ccp", peer.party_id, hop)

    async def _checked(
        self, answer: Delivered, request: VerifiedInstallationRequest, at: datetime
    ) -> list[tuple[SignedContract, bytes]]:
        """The items, when all of them hold.

        Raises MismatchError for another session or vehicle, and what `verify_response` raises.
        """
        good = [await self._verified(item, request, at) for item in answer.contracts[: request.request.maximum]]
        if request.request.namespace is Namespace.ISO2:
            return [(contract, contract.response) for contract in good[:1]]
        session_id = request.request.session_id
        # What is left is counted anew: the peer may have sent more than the vehicle takes.
        return [
            (contract, installation.answer(contract, session_id, at, len(good) - place))
            for place, contract in enumerate(good, start=1)
        ]

    async def _verified(
        self, item: SignedResponse, request: VerifiedInstallationRequest, at: datetime
    ) -> SignedContract:
        if item.pcid not in (None, request.pcid):
            raise MismatchError("The answer is for another vehicle.")
        response = installation.read_response(item.message, request.request.namespace)
        if response.parsed.message.Header.SessionID != request.request.session_id:
            raise MismatchError("The answer is for another session.")
        asked = AskedLater()
        verified = installation.verify_response(
            response, emaid=item.emaid, root=None, anchors=self._anchors(), revocation=asked, at=at
        )
        # As with the vehicle's own chain: what is known to be revoked is not handed on; what is not known is the peer's
        # to answer for now, and is asked for afterwards.
        for chain in asked.chains:
            await self._check(chain, at)
        return verified.signed_contract(request.pcid, item.metadata, at)
