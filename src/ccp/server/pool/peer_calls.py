"""A vehicle's request to one other pool: send it, verify the answer, and record the outcome for the peer.

A failure counts against the peer only if the peer caused it: not while this worker's event loop is late
(`ccp.server.runtime.loop_lag`), and not if a limit of this pool left the peer too little time.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from ccp.client import (
    ClientError,
    MalformedResponseError,
    NoContractResponse,
    NotFoundError,
    PartyType,
    Routing,
    TooManyRequestsError,
)
from ccp.errors import CCPError, InputError, Unavailable, VerificationError
from ccp.server.domain.parties import Caller, PartyRole
from ccp.server.external.egress import track_call
from ccp.server.metrics import Metrics, Stopwatch
from ccp.server.pool.negative_cache import NegativeCache, vehicle_of
from ccp.server.pool.peer_answers import AnswerRank, PeerAnswer, PeerAnswers
from ccp.server.pool.peer_links import CallTiming, PeerLink, no_answer, peer_works
from ccp.server.pool.peer_ranking import PeerRanking
from ccp.server.runtime.loop_lag import LoopLag
from ccp.server.storage.queries.peers import Peer
from ccp.verify import VerifiedInstallationRequest

if TYPE_CHECKING:
    from ccp.server.tracing.spans import Spans

_log = structlog.get_logger("ccp.server.pool.peers")

DELIVER: Final = "GetSignedContractDataByCertificateInstallationReq"
_NOTHING: Final = frozenset(
    {
        "FAILED_NoCertificateAvailable",
        "WARNING_NoContractMatchingPCIDFound",
        "WARNING_NoCertificateAvailable",
    }
)
"""Response codes that say that the pool has nothing for the vehicle. Any other may be due to a temporary failure."""
_TEMPORARY: Final = "temporary: "
_MIN_TIME_SHARE: Final = 0.5
"""Share of the time limit that a peer must have had for a timeout to count against it. Waiting here does not count."""


class VehicleRequest(NamedTuple):
    """A vehicle's verified request, on behalf of a caller. now: time of the request."""

    request: VerifiedInstallationRequest
    caller: Caller
    now: datetime


class VehicleCalls:
    """Asks one peer at a time; `ccp.server.pool.broadcasts` asks many."""

    def __init__(
        self,
        answers: PeerAnswers,
        negatives: NegativeCache,
        ranking: PeerRanking,
        metrics: Metrics,
        lag: LoopLag,
        *,
        own_id: str | None,
        timeout: float,
    ) -> None:
        """own_id: this pool's party id. timeout: seconds that all peers together have for a vehicle."""
        self._answers = answers
        self._negatives = negatives
        self._ranking = ranking
        self._metrics = metrics
        self._lag = lag
        self._own_id = own_id
        self.timeout: Final = timeout

    def trace(self, spans: Spans) -> None:
        """Give each request a span from now on."""
        self.ask = spans.traced("ask peer", self.ask, client=True)  # type: ignore[method-assign]

    async def ask(
        self,
        link: PeerLink,
        vehicle_request: VehicleRequest,
        time_left: float,
        is_decided: Callable[[], bool] = lambda: False,
    ) -> PeerAnswer | None:
        """Ask one peer. Returns None if it has nothing, or if its answer is rejected, which the log explains.

        time_left: seconds for the call. is_decided: whether another answer was taken meanwhile; then this one is not
        verified. The caller must have acquired a permit of the peer's circuit breaker. Raises Unavailable if the peer
        may have something but cannot answer now.
        """
        request, caller, now = vehicle_request
        log = _log.bind(peer=link.name, trace_id=caller.trace_id)
        count = self._metrics.stopwatch(link.name, DELIVER)
        timing = CallTiming(time_left, self._lag)
        try:
            with track_call(timing.call):
                answer = await link.vehicle_client.deliver(
                    request.request.parsed.data,
                    request.request.namespace,
                    broadcast=False,
                    routing=self._routing(link.peer, caller),
                    timeout=time_left,
                )
            if isinstance(answer, NoContractResponse):
                self._record_negative(answer, link, vehicle_request, count)
                return None
            if is_decided():
                link.breaker.record_success()
                count("overtaken")
                return None
            found = await self._answers.check(answer, request, now, link.peer)
        except ClientError as exc:
            # An error response comes from a peer that works; most often it says that the peer has nothing.
            # A malformed answer came in time, and the cause may be this vehicle's message alone.
            works = None if isinstance(exc, MalformedResponseError) else peer_works(exc)
            if works is True:
                link.breaker.record_success()
            elif works is False and not timing.failed_here(_MIN_TIME_SHARE * self.timeout):
                link.breaker.record_failure()
            else:
                link.breaker.release()
            count(exc.outcome)
            log.info("peer asked", outcome=exc.outcome, status=exc.status, reason=" ".join(exc.messages))
            if isinstance(exc, TooManyRequestsError) or peer_works(exc) is not True:
                raise no_answer(link.name, getattr(exc, "retry_after", None)) from exc
            if isinstance(exc, NotFoundError) and exc.trace_id is not None:  # Otherwise a proxy may have answered.
                self._negatives.add(vehicle_of(request), link.name)
            return None
        except (InputError, VerificationError) as exc:
            # The answer came in time, so the peer delays no vehicle. An invalid contract of one vehicle must not open
            # the circuit for the others: a caller can repeat the request of that vehicle at will.
            link.breaker.record_success()
            count(exc.outcome)
            log.warning("peer answer rejected", outcome=exc.outcome, reason=str(exc))
            return None
        except CCPError as exc:  # A failure of this pool, for example of its database.
            link.breaker.release()
            count(exc.outcome)
            log.warning("peer answer rejected", outcome=exc.outcome, reason=str(exc))
            if isinstance(exc, Unavailable):
                raise
            return None
        except BaseException as exc:
            link.breaker.release()
            if not isinstance(exc, Exception):  # Cancelled: the pool is closing, or the time limit was reached.
                count("overtaken")
                raise
            count("crashed")  # A defect of this pool; the answers of other peers are not affected.
            log.exception("peer answer rejected", outcome="crashed")
            return None
        link.breaker.record_success()
        elapsed = count("found")
        self._negatives.discard(vehicle_of(request), link.name)
        if found.rank > AnswerRank.CONTRADICTED:
            providers = {contract.emaid.provider for contract, _ in found.items}
            self._ranking.record(link.name, request.pcid.wmi, providers)
        log.info("peer asked", outcome="found", rank=found.rank.name.lower(), ms=round(elapsed * 1000, 2))
        return found

    def _record_negative(
        self, answer: NoContractResponse, link: PeerLink, vehicle_request: VehicleRequest, count: Stopwatch
    ) -> None:
        """Record a negative response message. Raises Unavailable if it says that the failure is temporary."""
        if answer.code == "FAILED" and (answer.reason or "").startswith(_TEMPORARY):
            link.breaker.release()
            count("unavailable")
            raise no_answer(link.name)
        link.breaker.record_success()
        count("nothing")
        if answer.code in _NOTHING:
            self._negatives.add(vehicle_of(vehicle_request.request), link.name)

    def _routing(self, peer: Peer, caller: Caller) -> Routing:
        """The OPNC routing headers: the calling CPO, and the peer."""
        operators = sorted(caller.party.operator_ids)
        if PartyRole.CPO in caller.party.roles and operators:
            return routing(peer, "cpo", operators[0], self._own_id)
        return routing(peer, None, None, self._own_id)


def routing(peer: Peer, from_type: PartyType | None, from_id: str | None, own_id: str | None) -> Routing:
    """The headers of a request to a peer: sender, receiver, and the mark that a pool forwarded it."""
    return Routing(from_type=from_type, from_id=from_id, to_type="ccp", to_id=peer.party_id, hop=own_id or "unnamed")
