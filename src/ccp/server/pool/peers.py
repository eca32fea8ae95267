"""Other pools: all of them are asked if nothing is found here, or one of them if a request is addressed to it.

    peers.ask(request, caller, now)                 # a vehicle's request, to all: `ccp.server.pool.broadcasts`
    peers.ask(request, caller, now, target_pool)    # the same, to one: `ccp.server.pool.peer_calls`
    peers.call(target_pool, caller, …)              # any other request, to one: `ccp.server.pool.remote`

`ccp.server.pool.peer_answers` verifies answers; `ccp.server.pool.peer_limits` limits what one caller may use of a peer.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar

import structlog
from httpcore import AsyncNetworkBackend

from ccp.client import TLS, AsyncClient, ClientError, PartyType, Routing, SignedResponse
from ccp.errors import CCPError, EXIError, MismatchError, NotFound, VerificationError
from ccp.errors.codes import ErrorCode
from ccp.ids import PCID, Fingerprint, Namespace
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.parties import Caller, PartyRole
from ccp.server.external.egress import client_tls_context, track_call
from ccp.server.metrics import Metrics
from ccp.server.pool.broadcast_limits import BroadcastLimits
from ccp.server.pool.broadcasts import Broadcasts
from ccp.server.pool.negative_cache import NegativeCache
from ccp.server.pool.peer_answers import PeerAnswer, PeerAnswers
from ccp.server.pool.peer_calls import DELIVER, VehicleCalls, VehicleRequest, routing
from ccp.server.pool.peer_limits import Shares, circuit_open, share_used_up
from ccp.server.pool.peer_links import CallTiming, PeerLink, no_answer, open_link, peer_works
from ccp.server.pool.peer_ranking import PeerRanking
from ccp.server.pool.shared_negatives import SharedNegatives
from ccp.server.runtime.background import PeriodicTask
from ccp.server.runtime.loop_budget import LoopBudget
from ccp.server.runtime.loop_lag import LoopLag
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.storage.queries import peers as queries
from ccp.server.storage.queries.peers import Peer
from ccp.verify import VerifiedInstallationRequest
from ccp.x509.path_validation import TrustAnchors, VerifiedChain

__all__ = ["NoPeers", "Peers", "RegisteredPeers", "Sender"]

if TYPE_CHECKING:
    from ccp.server.tracing.spans import Spans

_log = structlog.get_logger("ccp.server.pool.peers")

_TOTAL_ADDRESSED: Final = 96, 32
"""Addressed requests in flight to all peers, of one worker: total, and of one caller."""
_CONNECTION_INTERVAL: Final = 5.0
_LONGEST_CALL: Final = 60.0
"""Seconds after which a replaced link is closed even if a call of it has not ended."""
_GRACE: Final = 0.1  # Seconds after its time limit in which a call ends by itself; then it is cancelled.
_UNKNOWN: Final = "No pool with the id in OPNC-to-party-id is known here."

T = TypeVar("T")
Sender: TypeAlias = tuple[PartyType | None, str | None]
"""The original sender of a request: type and id of the party (OPNC-from-party-type, OPNC-from-party-id)."""


class Peers(Protocol):
    """The other pools, as seen by this one."""

    async def ask(
        self, request: VerifiedInstallationRequest, caller: Caller, now: datetime, target_pool: str | None = None
    ) -> list[tuple[SignedContract, bytes]]:
        """What other pools hold for the vehicle: verified contracts, each with its response message for this session.

        target_pool: ask this pool only. Returns an empty list if they hold nothing. Raises Unavailable if the target
        pool cannot be asked or does not answer; without a target, if a limit on broadcasts forbids asking.
        """

    def route(self, party_id: str) -> str | None:
        """The pool that a request is addressed to; None for this one. Raises NotFound."""

    async def call(
        self,
        target_pool: str,
        caller: Caller,
        sender: Sender,
        operation: str,
        send: Callable[[AsyncClient, Routing], Awaitable[T]],
    ) -> T:
        """Send one request to one pool, once, and return its result.

        send: sends the request and checks the answer. It raises MismatchError or EXIError if the answer does not match
        the request, VerificationError if a contract does not verify here. Raises what `send` raises, and Unavailable if
        a circuit is open or a limit is reached.
        """

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
        """Verify a contract that another pool sent.

        session_id: session id that the message must have; None for any. root: fingerprint of the required V2G root;
        None for any. Raises EXIError, MismatchError, VerificationError.
        """


class NoPeers:
    """Peers of a process that asks no other pool, such as an import worker."""

    async def ask(
        self, request: VerifiedInstallationRequest, caller: Caller, now: datetime, target_pool: str | None = None
    ) -> list[tuple[SignedContract, bytes]]:
        """Return an empty list."""
        return []

    def route(self, party_id: str) -> str | None:
        """Raises NotFound."""
        raise NotFound(_UNKNOWN, code=ErrorCode.POOL_NOT_FOUND)

    async def call(
        self,
        target_pool: str,
        caller: Caller,
        sender: Sender,
        operation: str,
        send: Callable[[AsyncClient, Routing], Awaitable[T]],
    ) -> T:
        """Raises NotFound."""
        raise NotFound(_UNKNOWN, code=ErrorCode.POOL_NOT_FOUND)

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
        """Raises NotFound."""
        raise NotFound(_UNKNOWN, code=ErrorCode.POOL_NOT_FOUND)


class RegisteredPeers:
    """The peers that are registered in the database. `refresh` loads them."""

    def __init__(
        self,
        store: Store,
        anchors: Callable[[], TrustAnchors],
        refuse_revoked: Callable[[VerifiedChain, datetime], Awaitable[None]],
        settings: Settings,
        metrics: Metrics,
        network_backend: AsyncNetworkBackend | None = None,
        *,
        budget: LoopBudget | None = None,
        lag: LoopLag | None = None,
        spans: Spans | None = None,
    ) -> None:
        """anchors: returns the trust anchors. refuse_revoked: raises RevokedError for a chain known to be revoked.

        network_backend: makes the connections to peers; None: httpcore's own. budget, lag: of the event loop.
        spans: traces requests; None for none.
        """
        self._network_backend = network_backend
        self._spans = spans
        self._tls: ssl.SSLContext | None = None
        self._store = store
        self._anchors = anchors
        self._metrics = metrics
        self._own_id = settings.pool_id
        self._request_timeout = settings.peer_request_timeout
        self._lag = lag or LoopLag()
        self._total_addressed = Shares(*_TOTAL_ADDRESSED)
        self._links: dict[str, PeerLink] = {}
        self._retired: list[tuple[float, PeerLink]] = []  # With the time on the monotonic clock.
        self._negatives = NegativeCache(settings.peer_negative_ttl, time.monotonic)
        self.negatives: Final = SharedNegatives(store, self._negatives)
        self._answers = PeerAnswers(store, anchors, refuse_revoked, budget or LoopBudget())
        ranking = PeerRanking(time.monotonic)
        self._calls = VehicleCalls(
            self._answers,
            self._negatives,
            ranking,
            metrics,
            self._lag,
            own_id=settings.pool_id,
            timeout=settings.peer_delivery_timeout,
        )
        if spans is not None:
            self._calls.trace(spans)
            self.call = spans.traced("call peer", self.call, client=True)  # type: ignore[method-assign]
        self._broadcast_limits = BroadcastLimits(settings.broadcast_rate, lambda: self._lag.recent_max)
        self._broadcasts = Broadcasts(self._calls, self._broadcast_limits, self._negatives, ranking, metrics)

    def configure(self, settings: Settings) -> None:
        """Use the reloadable settings from now on: `broadcast_rate`."""
        self._broadcast_limits.set_rate(settings.broadcast_rate)

    def _tls_of(self, peer: Peer) -> TLS | ssl.SSLContext:
        """The TLS context, shared by all peers. It is built with the first one that uses TLS: loading CAs is slow."""
        if not any((url or "").lower().startswith("https://") for url in (peer.base_url, peer.token_url)):
            return TLS()
        self._tls = self._tls or client_tls_context()
        return self._tls

    async def refresh(self) -> None:
        """Load the registered peers. The links of peers that did not change are kept.

        Calls in progress on the other links end as they began; `closing_expired` closes these links afterwards.
        """
        registered = {peer.party_id: peer for peer in await self._store.read(queries.list_all()) if peer.enabled}
        dropped = [link for name, link in self._links.items() if registered.get(name) != link.peer]
        kept = {name: link for name, link in self._links.items() if registered.get(name) == link.peer}
        for name, peer in registered.items():
            if name in kept:
                continue
            try:
                kept[name] = open_link(
                    peer,
                    self._request_timeout,
                    self._tls_of(peer),
                    self._metrics,
                    self._network_backend,
                    *(() if self._spans is None else (self._spans.headers,)),
                )
            except (CCPError, ValueError) as exc:
                _log.warning("peer not usable", peer=name, reason=str(exc))
                continue
            self._metrics.peer_circuit_changed(name, False)
        if kept != self._links:
            self._negatives.clear()
        self._links = kept
        for link in dropped:
            if link.name not in kept:
                self._metrics.peer_circuit_changed(link.name, False)
        self._retired += [(time.monotonic(), link) for link in dropped]

    async def close(self) -> None:
        """Cancel running calls and close all connections."""
        await self._broadcasts.close()
        links, self._links = [*self._links.values(), *(link for _, link in self._retired)], {}
        self._retired = []
        for link in links:
            await link.close()

    def closing_expired(self) -> PeriodicTask:
        """The background task that closes idle connections; a connection pool does so only when it is used."""

        async def close_expired() -> None:
            for link in tuple(self._links.values()):
                await link.close_expired()
            await self._close_retired()

        return PeriodicTask("peer_connections", close_expired, _CONNECTION_INTERVAL)

    async def _close_retired(self) -> None:
        """Close replaced links: once they are idle, but not while a broadcast may still use them for its next wave."""
        now = time.monotonic()
        youngest = now - self._calls.timeout - _GRACE
        oldest = now - _LONGEST_CALL - self._request_timeout
        ended = [(at, link) for at, link in self._retired if at < oldest or (at < youngest and link.is_idle)]
        self._retired = [entry for entry in self._retired if entry not in ended]
        for _, link in ended:
            await link.close()

    def circuit_is_open(self, party_id: str) -> bool:
        """Whether this worker sends a peer no vehicle's request after consecutive failures. False if it is unknown."""
        link = self._links.get(party_id)
        return link is not None and not link.breaker.is_closed

    def route(self, party_id: str) -> str | None:
        """See `Peers.route`."""
        if party_id == self._own_id:
            return None
        if party_id not in self._links:
            raise NotFound(_UNKNOWN, code=ErrorCode.POOL_NOT_FOUND)
        return party_id

    async def ask(
        self, request: VerifiedInstallationRequest, caller: Caller, now: datetime, target_pool: str | None = None
    ) -> list[tuple[SignedContract, bytes]]:
        """See `Peers.ask`. A request of another pool is not forwarded."""
        if PartyRole.CCP in caller.party.roles:
            return []
        vehicle_request = VehicleRequest(request, caller, now)
        if target_pool is not None:
            found = await self._ask_addressed(target_pool, vehicle_request)
        else:
            links = [link for link in self._links.values() if self._may_serve(link.peer, request)]
            found = await self._broadcasts.ask(links, vehicle_request)
        return [] if found is None else found.items

    async def _ask_addressed(self, target_pool: str, vehicle_request: VehicleRequest) -> PeerAnswer | None:
        """Send a vehicle's request that is addressed to one peer. The negative cache is not consulted."""
        link, party = self._links.get(target_pool), vehicle_request.caller.party.client_id
        if link is None:
            return None
        if not link.vehicle_shares.has_room(party):
            self._metrics.peer_request_ended(target_pool, DELIVER, "limited", 0.0)
            raise share_used_up(target_pool)
        if not link.breaker.allow():
            raise circuit_open(target_pool, link.breaker.retry_after())
        with link.vehicle_shares.taken(party):
            try:
                async with asyncio.timeout(self._calls.timeout + _GRACE):
                    return await self._calls.ask(link, vehicle_request, self._calls.timeout)
            except TimeoutError:
                raise no_answer(target_pool) from None

    def _may_serve(self, peer: Peer, request: VerifiedInstallationRequest) -> bool:
        """Whether a peer may have contracts under a root that the vehicle lists. True if this is not known."""
        known = [anchor for name in peer.v2g_roots if (anchor := self._anchors().by_fingerprint(name)) is not None]
        if len(known) < len(peer.v2g_roots) or not known or not request.request.root_ids:
            return True
        listed = {root.X509SerialNumber for root in request.request.root_ids}
        return any(anchor.certificate.serial_number in listed for anchor in known)

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
        return await self._answers.verify_contract(item, namespace, pcid, now, session_id=session_id, root=root)

    async def call(
        self,
        target_pool: str,
        caller: Caller,
        sender: Sender,
        operation: str,
        send: Callable[[AsyncClient, Routing], Awaitable[T]],
    ) -> T:
        """See `Peers.call`."""
        link = self._links.get(target_pool)
        if link is None:
            raise NotFound(_UNKNOWN, code=ErrorCode.POOL_NOT_FOUND)
        party = caller.party.client_id
        if not (link.addressed_shares.has_room(party) and self._total_addressed.has_room(party)):
            self._metrics.peer_request_ended(target_pool, operation, "limited", 0.0)
            raise share_used_up(target_pool)
        link.circuits.check(party, target_pool)
        log = _log.bind(peer=target_pool, operation=operation, trace_id=caller.trace_id)
        count = self._metrics.stopwatch(target_pool, operation)
        timing = CallTiming(self._request_timeout, self._lag)
        try:
            with link.addressed_shares.taken(party), self._total_addressed.taken(party), track_call(timing.call):
                answer = await send(link.addressed_client, routing(link.peer, *sender, self._own_id))
        except ClientError as exc:
            works = peer_works(exc)
            if works is True:
                link.circuits.record_success(party)
            elif works is False and not timing.failed_here(self._request_timeout / 2):
                link.circuits.record_failure(party)
            else:
                link.circuits.release(party)
            count(exc.outcome)
            log.info("request forwarded", outcome=exc.outcome, status=exc.status, peer_trace_id=exc.trace_id)
            raise
        except (MismatchError, EXIError) as exc:
            link.circuits.record_failure(party)
            count(exc.outcome)
            log.warning("peer answer rejected", outcome=exc.outcome, reason=str(exc))
            raise
        except VerificationError as exc:
            # The peer works: it may trust roots that this pool does not, or return an expired contract.
            link.circuits.record_success(party)
            count(exc.outcome)
            log.warning("peer answer rejected", outcome=exc.outcome, reason=str(exc))
            raise
        except CCPError as exc:  # A failure of this pool, for example of its database.
            link.circuits.release(party)
            count(exc.outcome)
            raise
        except BaseException:  # The caller has disconnected, or a defect of this pool.
            link.circuits.release(party)
            raise
        link.circuits.record_success(party)
        log.info("request forwarded", outcome="ok", ms=round(count("ok") * 1000, 2))
        return answer
