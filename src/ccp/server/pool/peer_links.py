"""The connections to one peer, and how its failures are judged.

Connections are kept alive and reused. Vehicles' requests have few connections and wait for a free one within their time
limit, so neither many broadcasts nor a slow peer can exhaust file descriptors. A response that arrives too late to be
used is still read to its end, because cancelling a request costs its connection.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from httpcore import AsyncNetworkBackend

from ccp.client import (
    TLS,
    AsyncClient,
    ClientError,
    Credentials,
    Dialect,
    MalformedResponseError,
    NoResponseError,
    RetryPolicy,
    Timeouts,
)
from ccp.errors import ConfigurationError, Unavailable
from ccp.errors.codes import ErrorCode
from ccp.server.external.circuit_breaker import CircuitBreaker
from ccp.server.external.egress import OutboundCall
from ccp.server.metrics import Metrics
from ccp.server.pool.peer_limits import Circuits, Shares, bounded_retry_after
from ccp.server.runtime.loop_lag import LoopLag
from ccp.server.storage.queries.peers import Peer

# Requests in flight to one peer, of one worker: total, and of one caller.
VEHICLE_REQUESTS: Final = 8, 6
ADDRESSED_REQUESTS: Final = 32, 16

_MAX_RESPONSE_BYTES: Final = 262_144  # Sixteen contracts of ISO 15118-20 with their certificates have some 200,000.
_MAX_EXCHANGE_SECONDS: Final = 60.0  # For one HTTP exchange. Each call has a lower limit.
# A failed call is attributed to this worker if its event loop was late by so many seconds in total, and by this share
# of the call's time: a call needs ten iterations of the loop or more.
_LOOP_LATE_SECONDS: Final = 0.1
_LOOP_LATE_SHARE: Final = 0.2
_FAILED: Final = (NoResponseError, MalformedResponseError)


@dataclass(frozen=True, slots=True)
class PeerLink:
    """A peer and the connections to it.

    vehicle_client, breaker, vehicle_shares: for vehicles' requests. addressed_client, circuits, addressed_shares: for
    requests that callers address to the peer.
    """

    peer: Peer
    vehicle_client: AsyncClient
    addressed_client: AsyncClient
    breaker: CircuitBreaker
    circuits: Circuits
    vehicle_shares: Shares
    addressed_shares: Shares

    @property
    def name(self) -> str:
        """The peer's party id."""
        return self.peer.party_id

    @property
    def is_idle(self) -> bool:
        """Whether no request to the peer is in flight, and none waits."""
        return self.vehicle_shares.is_idle and self.addressed_shares.is_idle

    async def close_expired(self) -> None:
        """Close connections that have been idle for too long, or that the peer has closed."""
        await self.vehicle_client.close_expired()
        await self.addressed_client.close_expired()

    async def close(self) -> None:
        """Close all connections."""
        await self.vehicle_client.close()
        await self.addressed_client.close()


def open_link(
    peer: Peer,
    request_timeout: float,
    tls: TLS | ssl.SSLContext,
    metrics: Metrics,
    network_backend: AsyncNetworkBackend | None,
    request_headers: Callable[[], Mapping[str, str]] = dict,
) -> PeerLink:
    """Build the link to a peer; it connects with the first request.

    request_timeout: seconds for an addressed request. request_headers: further headers of each request.
    Raises ConfigurationError, ValueError.
    """
    vehicle_client, addressed_client = (
        AsyncClient(
            network_backend=network_backend,
            request_headers=request_headers,
            tls=tls,
            **client_options(peer, request_timeout, max_connections),  # type: ignore[arg-type]
        )
        for max_connections in (VEHICLE_REQUESTS[0], ADDRESSED_REQUESTS[0])
    )
    return PeerLink(
        peer,
        vehicle_client,
        addressed_client,
        breaker=CircuitBreaker(time.monotonic, on_state_change=partial(metrics.peer_circuit_changed, peer.party_id)),
        circuits=Circuits(time.monotonic),
        vehicle_shares=Shares(*VEHICLE_REQUESTS),
        addressed_shares=Shares(*ADDRESSED_REQUESTS),
    )


class CallTiming:
    """How much of a call's time the peer really had. Everything the call sends is sent within `track_call(call)`."""

    def __init__(self, timeout: float, lag: LoopLag) -> None:
        """timeout: seconds for the whole call."""
        self.call: Final = OutboundCall(contacted=True)
        self._timeout = timeout
        self._lag = lag
        self._lost_before = lag.total
        self._began = time.monotonic()

    def failed_here(self, min_time: float) -> bool:
        """Whether the cause of a failed call may be this worker, so that the failure says nothing about the peer.

        True if the event loop was late for a good part of the call, if nothing was sent yet, or if the call timed out
        and the peer had less than `min_time` seconds of it because the call waited here.
        """
        took = time.monotonic() - self._began
        too_little = took >= 0.98 * self._timeout and self._timeout - self.call.loop_wait < min_time
        loop_late = self._lag.total - self._lost_before >= max(_LOOP_LATE_SECONDS, _LOOP_LATE_SHARE * took)
        return not self.call.contacted or too_little or loop_late


def client_options(peer: Peer, timeout: float, max_connections: int = 1) -> dict[str, object]:
    """The arguments of a client that calls a peer.

    timeout: seconds for a call including its token request, unless the call sets another. Nothing is retried. Raises
    ConfigurationError.
    """
    if peer.damage is not None:
        raise ConfigurationError(f"{peer.damage} Store a new one with `ccp peer rotate-secret {peer.party_id}`.")
    access: dict[str, object] = {"token": peer.token}
    if peer.token is None:
        if peer.client_id is None or peer.secret is None:
            raise ConfigurationError(f"Peer {peer.party_id} has neither a token nor client credentials.")
        access = {"credentials": Credentials(peer.client_id, peer.secret, peer.token_url, peer.audience)}
    if peer.dialect not in set(Dialect):
        raise ConfigurationError(f"Peer {peer.party_id} speaks {peer.dialect!r}, which this release does not.")
    return {
        "base_url": peer.base_url,
        "dialect": Dialect(peer.dialect),
        "timeouts": Timeouts(request=_MAX_EXCHANGE_SECONDS, total=timeout),
        "retry": RetryPolicy(max_retries=0),
        "max_response_bytes": _MAX_RESPONSE_BYTES,
        "max_connections": max_connections,
        **access,
    }


def peer_works(exc: ClientError) -> bool | None:
    """Whether an error shows that a peer works (True) or fails (False); None if it shows neither.

    A 502 or 503 in the API's own error format may concern this request alone (missing revocation status, for instance).
    It must not open the circuit breaker, or one caller could cut off a peer that others need.
    """
    if isinstance(exc, _FAILED) or exc.status is None:
        return False
    if exc.status in (502, 503) and exc.trace_id is not None:
        return None
    return exc.status < 500


def no_answer(peer: str, retry_after: float | None = None) -> Unavailable:
    """The error for a peer that does not answer. retry_after: seconds, from the peer."""
    return Unavailable(
        f"The pool {peer} does not answer now; try again later.",
        retry_after=bounded_retry_after(retry_after),
        code=ErrorCode.POOL_UNAVAILABLE,
    )
