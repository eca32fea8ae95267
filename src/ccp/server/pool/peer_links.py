"""The connections to one peer, and what its failures are held to be.

Connections are kept open and used again. Requests of vehicles have few of them and wait for one that is free, within
their time; so neither many broadcasts nor a slow peer use up descriptors. An answer that comes too late to win is still
read to its end, because a request that is cancelled costs its connection.
"""

from __future__ import annotations

import ssl
import time
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
from ccp.server.external.circuit_breaker import CircuitBreaker
from ccp.server.external.egress import OutboundCall
from ccp.server.metrics import Metrics
from ccp.server.pool.peer_limits import Circuits, Shares, whole_seconds
from ccp.server.runtime.loop_lag import LoopLag
from ccp.server.storage.queries.peers import Peer

# Requests under way to one peer, of one worker: in all, and of one caller.
CARS: Final = 8, 6
CALLS: Final = 32, 16

_MAX_ANSWER_BYTES: Final = 262_144  # Sixteen contracts of ISO 15118-20 with their certificates have some 200,000.
_LONGEST_CALL: Final = 60.0  # Seconds. The limit of each call is below.
_LOST: Final = 0.1  # Seconds by which the event loop has to be late in all for a call's failure to be put down to it,
_LOST_SHARE: Final = 0.2  # and the share of the call's time: a call needs ten turns of the loop or more.
_FAILED: Final = (NoResponseError, MalformedResponseError)


@dataclass(frozen=True, slots=True)
class PeerLink:
    """A peer and the connections to it.

    client, breaker, cars: for vehicles. addressed, circuits, calls: for requests that callers address to it.
    """

    peer: Peer
    client: AsyncClient
    addressed: AsyncClient
    breaker: CircuitBreaker
    circuits: Circuits
    cars: Shares
    calls: Shares

    @property
    def name(self) -> str:
        return self.peer.party_id

    async def close_expired(self) -> None:
        """Close connections that have been idle for too long, or that the peer has closed."""
        await self.client.close_expired()
        await self.addressed.close_expired()

    async def close(self) -> None:
        await self.client.close()
        await self.addressed.close()


def open_link(
    peer: Peer,
    call_seconds: float,
    tls: TLS | ssl.SSLContext,
    metrics: Metrics,
    network_backend: AsyncNetworkBackend | None,
) -> PeerLink:
    """Nothing is connected yet. call_seconds: for an addressed request. Raises ConfigurationError, ValueError."""
    client, addressed = (
        AsyncClient(
            network_backend=network_backend,
            tls=tls,
            **client_options(peer, call_seconds, most),  # type: ignore[arg-type]
        )
        for most in (CARS[0], CALLS[0])
    )
    breaker = CircuitBreaker(time.monotonic, on_state_change=partial(metrics.peer_resting, peer.party_id))
    return PeerLink(peer, client, addressed, breaker, Circuits(time.monotonic), Shares(*CARS), Shares(*CALLS))


class CallTiming:
    """How much of the time for a call the peer really had. What the call sends is sent within `track_call(call)`."""

    def __init__(self, seconds: float, lag: LoopLag) -> None:
        """seconds: for the whole call."""
        self.call: Final = OutboundCall(contacted=True)
        self._seconds = seconds
        self._lag = lag
        self._lost_before = lag.lost
        self._began = time.monotonic()

    def failed_here(self, least: float) -> bool:
        """Whether a call that has failed may have failed by what went on here, so that it says nothing of the peer.

        That is so if the event loop was late for a good part of the call, or if the peer did not answer in time and had
        less than `least` seconds of it: the rest was spent on waiting here.
        """
        took = time.monotonic() - self._began
        too_little = took >= 0.98 * self._seconds and self._seconds - self.call.loop_wait < least
        loop_late = self._lag.lost - self._lost_before >= max(_LOST, _LOST_SHARE * took)
        return not self.call.contacted or too_little or loop_late


def client_options(peer: Peer, seconds: float, max_connections: int = 1) -> dict[str, object]:
    """How a peer is called, as arguments of a client.

    seconds: for a call with everything that belongs to it, unless the call says otherwise. Nothing is tried again.
    """
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
        "timeouts": Timeouts(request=_LONGEST_CALL, total=seconds),
        "retry": RetryPolicy(max_retries=0),
        "max_response_bytes": _MAX_ANSWER_BYTES,
        "max_connections": max_connections,
        **access,
    }


def says_of_peer(exc: ClientError) -> bool | None:
    """Whether an error shows that a peer works (True) or fails (False); None where it shows neither.

    An error in the API's own shape may concern this request alone (missing evidence, for instance). It must not open
    the circuit breaker, or one caller could cut off a peer that others need.
    """
    if isinstance(exc, _FAILED) or exc.status is None:
        return False
    if exc.status in (502, 503) and exc.trace_id is not None:
        return None
    return exc.status < 500


def silent(peer: str, after: float | None = None) -> Unavailable:
    """after: seconds that the peer asks to wait."""
    return Unavailable(f"The pool {peer} does not answer now; try again later.", retry_after=whole_seconds(after))
