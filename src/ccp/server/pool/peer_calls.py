"""A vehicle's request to one other pool: sent, its answer judged and remembered, and what it says of the peer.

A failure counts against the peer only if it is the peer's: not while this worker's event loop is late
(`ccp.server.runtime.loop_lag`), and not where a limit of this pool left the peer too little time.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final, NamedTuple

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
from ccp.server.pool.peer_answers import Found, PeerAnswers, Standing
from ccp.server.pool.peer_links import CallTiming, PeerLink, says_of_peer, silent
from ccp.server.pool.peer_ranking import PeerRanking
from ccp.server.runtime.loop_lag import LoopLag
from ccp.server.storage.queries.peers import Peer
from ccp.verify import VerifiedInstallationRequest

_log = structlog.get_logger("ccp.server.pool.peers")

DELIVER: Final = "GetSignedContractDataByCertificateInstallationReq"
_NOTHING: Final = frozenset(
    {
        "FAILED_NoCertificateAvailable",
        "WARNING_NoContractMatchingPCIDFound",
        "WARNING_NoCertificateAvailable",
    }
)
"""Response codes that say that the pool has nothing for the vehicle. Every other one may be of a temporary failure."""
_TEMPORARY: Final = "temporary: "
_LEAST_SHARE: Final = 0.5
"""Of the time that peers have for a vehicle: one that had less of it, without what went by here, is not blamed."""


class Attempt(NamedTuple):
    """A vehicle's request, for whichever peer."""

    request: VerifiedInstallationRequest
    caller: Caller
    at: datetime


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
        seconds: float,
    ) -> None:
        """own_id: this pool's party id. seconds: that peers have in all for a vehicle."""
        self._answers = answers
        self._negatives = negatives
        self._ranking = ranking
        self._metrics = metrics
        self._lag = lag
        self._own_id = own_id
        self.seconds: Final = seconds

    async def ask(
        self, link: PeerLink, attempt: Attempt, seconds: float, is_decided: Callable[[], bool] = lambda: False
    ) -> Found | None:
        """What one peer holds. What is wrong with it is told in the log and is nothing to the others.

        seconds: until the peer has to have answered. is_decided: whether another answer was taken meanwhile; this one
        is then not looked at. Raises Unavailable where the peer may hold something and cannot say so now. The circuit
        must have let the call through.
        """
        request, caller, at = attempt
        about = {"peer": link.name, "trace_id": caller.trace_id}
        count = self._metrics.stopwatch(link.name, DELIVER)
        timing = CallTiming(seconds, self._lag)
        try:
            with track_call(timing.call):
                answer = await link.client.deliver(
                    request.request.parsed.octets,
                    request.request.namespace,
                    broadcast=False,
                    routing=self._routing(link.peer, caller),
                    timeout=seconds,
                )
            if isinstance(answer, NoContractResponse):
                self._refused(answer, link, attempt, count)
                return None
            if is_decided():
                link.breaker.record_success()
                count("overtaken")
                return None
            found = await self._answers.check(answer, request, at, link.peer)
        except ClientError as exc:
            # An answer that refuses is one of a peer that is well; that it knows nothing is even the rule.
            # One that cannot be read came in time; it may be the message of this vehicle alone.
            verdict = None if isinstance(exc, MalformedResponseError) else says_of_peer(exc)
            if verdict is True:
                link.breaker.record_success()
            elif verdict is False and not timing.failed_here(_LEAST_SHARE * self.seconds):
                link.breaker.record_failure()
            else:
                link.breaker.release()
            count(exc.code)
            _log.info("peer asked", outcome=exc.code, status=exc.status, reason=" ".join(exc.messages), **about)
            if isinstance(exc, TooManyRequestsError) or says_of_peer(exc) is not True:
                raise silent(link.name, getattr(exc, "retry_after", None)) from exc
            if isinstance(exc, NotFoundError) and exc.trace_id is not None:  # Else it may be a proxy's.
                self._negatives.add(vehicle_of(request), link.name)
            return None
        except (InputError, VerificationError) as exc:
            # It came in time, so the peer costs no vehicle anything. What is wrong with the contract of one vehicle
            # must not keep the others from the peer: a caller can repeat the request of that one.
            link.breaker.record_success()
            count(exc.code)
            _log.warning("peer's answer not taken", outcome=exc.code, reason=str(exc), **about)
            return None
        except CCPError as exc:  # Of ours: the database does not answer, say.
            link.breaker.release()
            count(exc.code)
            _log.warning("peer's answer not taken", outcome=exc.code, reason=str(exc), **about)
            if isinstance(exc, Unavailable):
                raise
            return None
        except BaseException as exc:
            link.breaker.release()
            if not isinstance(exc, Exception):  # The pool is closing, or there is no time left.
                count("overtaken")
                raise
            count("crashed")  # A defect of ours; the answers of other peers are not affected.
            _log.exception("peer's answer not taken", outcome="crashed", **about)
            return None
        link.breaker.record_success()
        passed = count("found")
        self._negatives.discard(vehicle_of(request), link.name)
        if found.standing > Standing.CONTRADICTED:
            providers = {contract.emaid.provider for contract, _ in found.items}
            self._ranking.found(link.name, request.pcid.wmi, providers)
        standing = found.standing.name.lower()
        _log.info("peer asked", outcome="found", standing=standing, ms=round(passed * 1000, 2), **about)
        return found

    def _refused(self, answer: NoContractResponse, link: PeerLink, attempt: Attempt, count: Stopwatch) -> None:
        """A negative message. Raises Unavailable where it says that it is temporary."""
        request = attempt.request
        if answer.code == "FAILED" and (answer.reason or "").startswith(_TEMPORARY):
            link.breaker.release()
            count("unavailable")
            raise silent(link.name)
        link.breaker.record_success()
        count("nothing")
        if answer.code in _NOTHING:
            self._negatives.add(vehicle_of(request), link.name)

    def _routing(self, peer: Peer, caller: Caller) -> Routing:
        """Who asked us, and whom we ask."""
        operators = sorted(caller.party.operator_ids)
        if PartyRole.CPO in caller.party.roles and operators:
            return routing(peer, "cpo", operators[0], self._own_id)
        return routing(peer, None, None, self._own_id)


def routing(peer: Peer, from_type: PartyType | None, from_id: str | None, own_id: str | None) -> Routing:
    return Routing(from_type=from_type, from_id=from_id, to_type="ccp", to_id=peer.party_id, hop=own_id or "unnamed")
