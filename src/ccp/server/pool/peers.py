"""Other pools: asked together when nothing is found here, or one of them when a request is for it.

    peers.ask(request, caller, at)           # a vehicle's request, of all of them: `ccp.server.pool.broadcasts`
    peers.ask(request, caller, at, to)       # the same, of one: `ccp.server.pool.peer_calls`
    peers.call(to, caller, …)                # every other request, whose sender is told what became of it:
    `ccp.server.pool.remote`

What an answer has to be is in `ccp.server.pool.peer_answers`, what one caller may use of a peer in
`ccp.server.pool.peer_limits`.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final, Protocol, TypeAlias, TypeVar

import structlog
from httpcore import AsyncNetworkBackend

from ccp.client import TLS, AsyncClient, ClientError, PartyType, Routing, SignedResponse
from ccp.errors import CCPError, EXIError, MismatchError, NotFound, VerificationError
from ccp.ids import PCID, Fingerprint, Namespace
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.parties import Caller, PartyRole
from ccp.server.external.egress import client_tls_context, track_call
from ccp.server.metrics import Metrics
from ccp.server.pool.broadcast_limits import BroadcastLimits
from ccp.server.pool.broadcasts import Broadcasts
from ccp.server.pool.negative_cache import NegativeCache
from ccp.server.pool.peer_answers import Found, PeerAnswers
from ccp.server.pool.peer_calls import DELIVER, Attempt, VehicleCalls, routing
from ccp.server.pool.peer_limits import Shares, circuit_open, share_used_up
from ccp.server.pool.peer_links import CallTiming, PeerLink, open_link, says_of_peer, silent
from ccp.server.pool.peer_ranking import PeerRanking
from ccp.server.runtime.background import PeriodicTask
from ccp.server.runtime.loop_budget import LoopBudget
from ccp.server.runtime.loop_lag import LoopLag
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.storage.queries import peers as queries
from ccp.server.storage.queries.peers import Peer
from ccp.verify import VerifiedInstallationRequest
from ccp.x509.path_validation import TrustAnchors, VerifiedChain

__all__ = ["From", "NoPeers", "Peers", "PoolPeers"]

_log = structlog.get_logger("ccp.server.pool.peers")

_ALL_CALLS: Final = 96, 32
"""Addressed requests under way to all peers, of one worker: in all, and of one caller."""
_CONNECTION_INTERVAL: Final = 5.0
_UNKNOWN: Final = "No pool with the id in OPNC-to-party-id is known here."

T = TypeVar("T")
From: TypeAlias = tuple[PartyType | None, str | None]
"""Who a request is from, originally: the type of the party and its id."""


class Peers(Protocol):
    async def ask(
        self, request: VerifiedInstallationRequest, caller: Caller, at: datetime, to: str | None = None
    ) -> list[tuple[SignedContract, bytes]]:
        """What other pools hold for the vehicle, answered for its session and checked; empty when they hold nothing.

        to: this one alone. Raises Unavailable where it cannot be asked now, or does not answer; without `to`, where no
        pool is asked because of a limit on broadcasts.
        """

    def route(self, party_id: str) -> str | None:
        """The pool that a request is addressed to; None for this one. Raises NotFound."""

    async def call(
        self,
        to: str,
        caller: Caller,
        sender: From,
        operation: str,
        send: Callable[[AsyncClient, Routing], Awaitable[T]],
    ) -> T:
        """Carry one request to one pool, once, and bring what comes of it.

        send: sends it, and checks the answer: MismatchError and EXIError say that the pool answers something else than
        it was asked, VerificationError that the contract does not hold here. Raises what `send` does, and Unavailable
        for a pool that is left alone.
        """

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
        """A contract that another pool sent, when it is what was asked for and verifies here.

        session_id: what the message has to have; None for any. Raises EXIError, MismatchError, VerificationError.
        """


class NoPeers:
    async def ask(
        self, request: VerifiedInstallationRequest, caller: Caller, at: datetime, to: str | None = None
    ) -> list[tuple[SignedContract, bytes]]:
        return []

    def route(self, party_id: str) -> str | None:
        raise NotFound(_UNKNOWN)

    async def call(
        self,
        to: str,
        caller: Caller,
        sender: From,
        operation: str,
        send: Callable[[AsyncClient, Routing], Awaitable[T]],
    ) -> T:
        raise NotFound(_UNKNOWN)

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
        raise NotFound(_UNKNOWN)


class PoolPeers:
    """The peers of the store. `refresh` takes over what is registered now."""

    def __init__(
        self,
        store: Store,
        anchors: Callable[[], TrustAnchors],
        check: Callable[[VerifiedChain, datetime], Awaitable[None]],
        settings: Settings,
        metrics: Metrics,
        network_backend: AsyncNetworkBackend | None = None,
        *,
        budget: LoopBudget | None = None,
        lag: LoopLag | None = None,
    ) -> None:
        """anchors: what is trusted now. check: refuses a chain that is known to be revoked.

        network_backend: makes the connections to peers; None: httpcore's own. budget, lag: of the event loop.
        """
        self._network_backend = network_backend
        self._tls: ssl.SSLContext | None = None
        self._store = store
        self._anchors = anchors
        self._metrics = metrics
        self._own_id = settings.pool_id
        self._call_seconds = settings.peer_request_timeout
        self._lag = lag or LoopLag()
        self._all_calls = Shares(*_ALL_CALLS)
        self._lines: dict[str, PeerLink] = {}
        self._negatives = NegativeCache(settings.peer_negative_ttl, time.monotonic)
        self._answers = PeerAnswers(store, anchors, check, budget or LoopBudget())
        ranking = PeerRanking(time.monotonic)
        self._calls = VehicleCalls(
            self._answers,
            self._negatives,
            ranking,
            metrics,
            self._lag,
            own_id=settings.pool_id,
            seconds=settings.peer_delivery_timeout,
        )
        limits = BroadcastLimits(settings.broadcast_rate, lambda: self._lag.recent_max)
        self._broadcasts = Broadcasts(self._calls, limits, self._negatives, ranking, metrics)

    def _tls_of(self, peer: Peer) -> TLS | ssl.SSLContext:
        """One context for all peers, made when the first of them is called over TLS: loading the CAs takes a while."""
        if not any((url or "").lower().startswith("https://") for url in (peer.base_url, peer.token_url)):
            return TLS()
        self._tls = self._tls or client_tls_context()
        return self._tls

    async def refresh(self) -> None:
        registered = {peer.party_id: peer for peer in await self._store.read(queries.list_all()) if peer.enabled}
        dropped = [line for name, line in self._lines.items() if registered.get(name) != line.peer]
        kept = {name: line for name, line in self._lines.items() if registered.get(name) == line.peer}
        for name, peer in registered.items():
            if name in kept:
                continue
            try:
                kept[name] = open_link(
                    peer, self._call_seconds, self._tls_of(peer), self._metrics, self._network_backend
                )
            except (CCPError, ValueError) as exc:
                _log.warning("peer not usable", peer=name, reason=str(exc))
                continue
            self._metrics.peer_resting(name, False)
        if kept != self._lines:
            self._negatives.clear()
        self._lines = kept
        for line in dropped:
            if line.peer.party_id not in kept:
                self._metrics.peer_resting(line.peer.party_id, False)
            await line.close()

    async def close(self) -> None:
        await self._broadcasts.close()
        lines, self._lines = self._lines, {}
        for line in lines.values():
            await line.close()

    def closing_expired(self) -> PeriodicTask:
        """Closes idle connections in time: the pool of a peer that is not called does not do it by itself."""

        async def close_expired() -> None:
            for line in tuple(self._lines.values()):
                await line.close_expired()

        return PeriodicTask("peer_connections", close_expired, _CONNECTION_INTERVAL)

    def route(self, party_id: str) -> str | None:
        if party_id == self._own_id:
            return None
        if party_id not in self._lines:
            raise NotFound(_UNKNOWN)
        return party_id

    async def ask(
        self, request: VerifiedInstallationRequest, caller: Caller, at: datetime, to: str | None = None
    ) -> list[tuple[SignedContract, bytes]]:
        if PartyRole.CCP in caller.party.roles:
            return []
        attempt = Attempt(request, caller, at)
        if to is not None:
            found = await self._ask_addressed(to, attempt)
        else:
            links = [link for link in self._lines.values() if self._serves(link.peer, request)]
            found = await self._broadcasts.ask(links, attempt)
        return [] if found is None else found.items

    async def _ask_addressed(self, to: str, attempt: Attempt) -> Found | None:
        """A vehicle's request that is addressed to one peer. What is remembered of that peer does not count here."""
        link, party = self._lines.get(to), attempt.caller.party.client_id
        if link is None:
            return None
        if not link.cars.has_room(party):
            self._metrics.peer_asked(to, DELIVER, "limited", 0.0)
            raise share_used_up(to)
        if not link.breaker.allow():
            raise circuit_open(to, link.breaker.retry_after())
        with link.cars.taken(party):
            try:
                async with asyncio.timeout(self._calls.seconds + 0.1):  # It ends by itself; this is for what does not.
                    return await self._calls.ask(link, attempt, self._calls.seconds)
            except TimeoutError:
                raise silent(to) from None

    def _serves(self, peer: Peer, request: VerifiedInstallationRequest) -> bool:
        """Whether a peer may have something for a vehicle: it has contracts under a root that the vehicle lists."""
        known = [anchor for name in peer.v2g_roots if (anchor := self._anchors().find(name)) is not None]
        if len(known) < len(peer.v2g_roots) or not known or not request.request.roots:
            return True
        listed = {root.X509SerialNumber for root in request.request.roots}
        return any(anchor.certificate.serial_number in listed for anchor in known)

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
        return await self._answers.verified(item, namespace, pcid, at, session_id=session_id, root=root)

    # --- Addressed -----------------------------------------------------------------------------------------------

    async def call(
        self,
        to: str,
        caller: Caller,
        sender: From,
        operation: str,
        send: Callable[[AsyncClient, Routing], Awaitable[T]],
    ) -> T:
        line = self._lines.get(to)
        if line is None:
            raise NotFound(_UNKNOWN)
        name = caller.party.client_id
        if not (line.calls.has_room(name) and self._all_calls.has_room(name)):
            self._metrics.peer_asked(to, operation, "limited", 0.0)
            raise share_used_up(to)
        line.circuits.check(name, to)
        told = {"peer": to, "operation": operation, "trace_id": caller.trace_id}
        count = self._metrics.stopwatch(to, operation)
        timing = CallTiming(self._call_seconds, self._lag)
        try:
            with line.calls.taken(name), self._all_calls.taken(name), track_call(timing.call):
                answer = await send(line.addressed, routing(line.peer, *sender, self._own_id))
        except ClientError as exc:
            verdict = says_of_peer(exc)
            if verdict is True:
                line.circuits.record_success(name)
            elif verdict is False and not timing.failed_here(self._call_seconds / 2):
                line.circuits.record_failure(name)
            else:
                line.circuits.release(name)
            count(exc.code)
            _log.info("request passed on", outcome=exc.code, status=exc.status, there=exc.trace_id, **told)
            raise
        except (MismatchError, EXIError) as exc:
            line.circuits.record_failure(name)
            count(exc.code)
            _log.warning("peer's answer not taken", outcome=exc.code, reason=str(exc), **told)
            raise
        except VerificationError as exc:
            # It may trust roots that we do not, or show what has expired, and be well.
            line.circuits.record_success(name)
            count(exc.code)
            _log.warning("peer's answer not taken", outcome=exc.code, reason=str(exc), **told)
            raise
        except CCPError as exc:  # Of ours: the database does not answer, say.
            line.circuits.release(name)
            count(exc.code)
            raise
        except BaseException:  # The caller has gone, or a defect of ours.
            line.circuits.release(name)
            raise
        line.circuits.record_success(name)
        _log.info("request passed on", outcome="ok", ms=round(count("ok") * 1000, 2), **told)
        return answer
