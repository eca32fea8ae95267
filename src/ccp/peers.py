"""Other pools: asked together when nothing is found here, or one of them when a request is for it.

An answer counts only when it is good for this vehicle as far as anybody but the vehicle can tell: a positive message,
of this session, with the provisioning service's signature and both chains to roots that are trusted here.

No part of a message proves which vehicle its contract is for: the signature covers EMAID, contract chain and keys, and
only the vehicle can tell whether it is able to decrypt. So answers have a `Standing` by what else is known, and the one
with the best standing wins; within the budget the pool waits for a peer as long as it could bring a better one.

Circuit breakers keep slow and failing peers from costing every request its time, see `ccp.peer_limits`.

`ask` is for vehicles, whose answer is a message in any case; `call` carries every other request (`ccp.relay`), whose
sender is told what became of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeAlias, TypeVar

import structlog
from httpcore import AsyncNetworkBackend

from ccp import installation
from ccp.breaker import Breaker
from ccp.client import (
    TLS,
    AsyncClient,
    ClientError,
    Credentials,
    Delivered,
    Dialect,
    Limits,
    MalformedAnswerError,
    NoAnswerError,
    PartyType,
    Routing,
    SignedResponse,
    TooManyRequestsError,
)
from ccp.contracts import SignedContract
from ccp.egress import tls_context
from ccp.errors import (
    CCPError,
    ConfigurationError,
    EXIError,
    InputError,
    MismatchError,
    NotFound,
    Unavailable,
    VerificationError,
)
from ccp.ids import PCID, Fingerprint, Namespace
from ccp.installation import VerifiedInstallationRequest
from ccp.metrics import Metrics
from ccp.parties import Caller, Role
from ccp.peer_limits import Circuits, Shares, circuit_open, share_used_up, whole_seconds
from ccp.pki.evidence import AskedLater
from ccp.pki.paths import TrustAnchors, VerifiedChain
from ccp.settings import Settings
from ccp.store import Store
from ccp.store import peers as questions
from ccp.store.contracts import holder
from ccp.store.peers import Peer

_log = structlog.get_logger("ccp.peers")

HOP_HEADER: Final = "X-CCP-Hop"
"""Says that a request came from a pool already; such a one is not passed on. Its value is that pool's id."""

_DELIVER: Final = "GetSignedContractDataByCertificateInstallationReq"
_MAX_ANSWER_BYTES: Final = 262_144  # Sixteen contracts of ISO 15118-20 with their certificates have some 200,000.
_MAX_ITEMS: Final = 16  # Contracts of an answer that are verified.
_LONGEST_CALL: Final = 60.0  # Seconds. The limit of each call is below.
# Requests under way to one peer, of one worker: in all, and of one caller.
_CARS: Final = 128, 64
_CALLS: Final = 64, 16
_FAILED: Final = (NoAnswerError, MalformedAnswerError)

_UNKNOWN: Final = "No pool with the id in OPNC-to-party-id is known here."

T = TypeVar("T")
From: TypeAlias = tuple[PartyType | None, str | None]
"""Who a request is from, originally: the type of the party and its id."""


class Peers(Protocol):
    async def ask(
        self, request: VerifiedInstallationRequest, caller: Caller, at: datetime, to: str | None = None
    ) -> list[tuple[SignedContract, bytes]]:
        """What other pools hold for the vehicle, answered for its session and checked; empty when they hold nothing.

        to: this one alone. Raises Unavailable where it cannot be asked now, or does not answer.
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


def _best_of(peer: Peer) -> Standing:
    """The best that an answer of a peer can be."""
    if peer.provider_ids:
        return Standing.REGISTERED
    return Standing.NAMED if peer.dialect == Dialect.OPNC else Standing.UNNAMED


class Found(NamedTuple):
    """What a peer holds for a vehicle: contracts, each with its answer."""

    standing: Standing
    items: list[tuple[SignedContract, bytes]]


@dataclass(frozen=True, slots=True)
class _Line:
    """A peer and the connections to it.

    client, breaker, cars: for vehicles. addressed, circuits, calls: for requests that callers address to it.
    """

    peer: Peer
    client: AsyncClient
    addressed: AsyncClient
    breaker: Breaker
    circuits: Circuits
    cars: Shares
    calls: Shares

    async def close(self) -> None:
        await self.client.close()
        await self.addressed.close()


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
    limits = Limits(
        exchange=_LONGEST_CALL, total=seconds, retries=0, octets=_MAX_ANSWER_BYTES, connections=max_connections
    )
    return {"base_url": peer.base_url, "dialect": Dialect(peer.dialect), "limits": limits, **access}


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
    ) -> None:
        """anchors: what is trusted now. check: refuses a chain that is known to be revoked.

        network_backend: makes the connections to peers; None: httpcore's own.
        """
        self._network_backend = network_backend
        self._tls: ssl.SSLContext | None = None
        self._store = store
        self._anchors = anchors
        self._check = check
        self._metrics = metrics
        self._own_id = settings.pool_id
        self._seconds = settings.peer_seconds
        self._call_seconds = settings.peer_call_seconds
        self._lines: dict[str, _Line] = {}

    def _tls_of(self, peer: Peer) -> TLS | ssl.SSLContext:
        """One context for all peers, made when the first of them is called over TLS: loading the CAs takes a while."""
        if not any((url or "").lower().startswith("https://") for url in (peer.base_url, peer.token_url)):
            return TLS()
        self._tls = self._tls or tls_context()
        return self._tls

    async def refresh(self) -> None:
        registered = {peer.party_id: peer for peer in await self._store.read(questions.every()) if peer.enabled}
        dropped = [line for name, line in self._lines.items() if registered.get(name) != line.peer]
        kept = {name: line for name, line in self._lines.items() if registered.get(name) == line.peer}
        for name, peer in registered.items():
            if name in kept:
                continue
            try:
                client, addressed = (
                    AsyncClient(
                        network_backend=self._network_backend,
                        tls=self._tls_of(peer),
                        **client_options(peer, self._call_seconds, most),  # type: ignore[arg-type]
                    )
                    for most in (_CARS[0], _CALLS[0])
                )
            except (CCPError, ValueError) as exc:
                _log.warning("peer not usable", peer=name, reason=str(exc))
                continue
            breaker = Breaker(time.monotonic, tell=partial(self._metrics.peer_resting, name))
            circuits = Circuits(time.monotonic)
            kept[name] = _Line(peer, client, addressed, breaker, circuits, Shares(*_CARS), Shares(*_CALLS))
            self._metrics.peer_resting(name, False)
        self._lines = kept
        for line in dropped:
            if line.peer.party_id not in kept:
                self._metrics.peer_resting(line.peer.party_id, False)
            await line.close()

    async def close(self) -> None:
        lines, self._lines = self._lines, {}
        for line in lines.values():
            await line.close()

    def route(self, party_id: str) -> str | None:
        if party_id == self._own_id:
            return None
        if party_id not in self._lines:
            raise NotFound(_UNKNOWN)
        return party_id

    async def ask(
        self, request: VerifiedInstallationRequest, caller: Caller, at: datetime, to: str | None = None
    ) -> list[tuple[SignedContract, bytes]]:
        if Role.CCP in caller.party.roles:
            return []
        problem: Unavailable | None = None
        with ExitStack() as shares:
            tasks: dict[asyncio.Task[Found | None], Standing] = {}
            for name, line in self._lines.items():
                if not (name == to if to is not None else self._serves(line.peer, request)):
                    continue
                if not line.cars.has_room(caller.party.client_id):
                    self._metrics.peer_asked(name, _DELIVER, "limited", 0.0)
                    problem = share_used_up(name)
                elif line.breaker.lets_through():
                    shares.enter_context(line.cars.taken(caller.party.client_id))
                    tasks[asyncio.create_task(self._ask_one(line, request, caller, at))] = _best_of(line.peer)
                else:
                    problem = circuit_open(name, line.breaker.seconds_left())
            try:
                found = await self._best(tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        if found is not None:
            return found.items
        if to is not None:
            problem = problem or next((_problem(task, to) for task in tasks), None)
            if problem is not None:
                raise problem
        return []

    async def _best(self, tasks: Mapping[asyncio.Task[Found | None], Standing]) -> Found | None:
        """The answer with the best standing within the budget. tasks: each with the best standing that it can bring."""
        best: Found | None = None
        pending = set(tasks)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds + 0.1):  # Each ends by itself; this is for what does not.
                while pending and (best is None or any(tasks[task] > best.standing for task in pending)):
                    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    for found in (task.result() for task in tasks if task in done and not task.exception()):
                        if found is not None and (best is None or found.standing > best.standing):
                            best = found
        return best

    def _serves(self, peer: Peer, request: VerifiedInstallationRequest) -> bool:
        """Whether a peer may have something for a vehicle: it has contracts under a root that the vehicle lists."""
        known = [anchor for name in peer.v2g_roots if (anchor := self._anchors().find(name)) is not None]
        if len(known) < len(peer.v2g_roots) or not known or not request.request.roots:
            return True
        listed = {root.X509SerialNumber for root in request.request.roots}
        return any(anchor.certificate.serial_number in listed for anchor in known)

    async def _ask_one(
        self, line: _Line, request: VerifiedInstallationRequest, caller: Caller, at: datetime
    ) -> Found | None:
        """What one peer holds. Whatever is wrong with it is told in the log and is nothing to the others.

        Raises Unavailable where it may hold something and cannot say so now.
        """
        told = {"peer": line.peer.party_id, "trace_id": caller.trace_id}
        count = self._stopwatch(line.peer.party_id, _DELIVER)
        try:
            answer = await line.client.deliver(
                request.request.parsed.octets,
                request.request.namespace,
                broadcast=False,
                routing=self._routing(line.peer, caller),
                seconds=self._seconds,
            )
            found = await self._checked(answer, request, at, line.peer) if isinstance(answer, Delivered) else None
        except ClientError as exc:
            # An answer that refuses is one of a peer that is well; that it knows nothing is even the rule.
            # One that cannot be read came in time; it may be the message of this vehicle alone.
            match None if isinstance(exc, MalformedAnswerError) else _says_of_peer(exc):
                case True:
                    line.breaker.succeeded()
                case False:
                    line.breaker.failed()
                case None:
                    line.breaker.unused()
            count(exc.code)
            _log.info("peer asked", outcome=exc.code, status=exc.status, reason=" ".join(exc.messages), **told)
            if isinstance(exc, TooManyRequestsError) or _says_of_peer(exc) is not True:
                raise _silent(line.peer.party_id, getattr(exc, "retry_after", None)) from exc
            return None
        except (InputError, VerificationError) as exc:
            # It came in time, so the peer costs no vehicle anything. What is wrong with the contract of one vehicle
            # must not keep the others from the peer: a caller can repeat the request of that one.
            line.breaker.succeeded()
            count(exc.code)
            _log.warning("peer's answer not taken", outcome=exc.code, reason=str(exc), **told)
            return None
        except CCPError as exc:  # Of ours: the database does not answer, say.
            line.breaker.unused()
            count(exc.code)
            _log.warning("peer's answer not taken", outcome=exc.code, reason=str(exc), **told)
            if isinstance(exc, Unavailable):
                raise
            return None
        except asyncio.CancelledError:
            line.breaker.unused()
            count("overtaken")  # Another pool was faster, or there is no time left.
            raise
        except Exception:  # A defect of ours; the answers of other peers are not affected.
            line.breaker.unused()
            count("crashed")
            _log.exception("peer's answer not taken", outcome="crashed", **told)
            return None
        line.breaker.succeeded()
        seconds = count("nothing" if found is None else "found")
        standing = None if found is None else found.standing.name.lower()
        _log.info(
            "peer asked",
            outcome="nothing" if found is None else "found",
            standing=standing,
            ms=round(seconds * 1000, 2),
            **told,
        )
        return found

    def _routing(self, peer: Peer, caller: Caller) -> Routing:
        """Who asked us, and whom we ask."""
        operators = sorted(caller.party.operator_ids)
        if Role.CPO in caller.party.roles and operators:
            return self._addressed(peer, ("cpo", operators[0]))
        return self._addressed(peer, (None, None))

    def _addressed(self, peer: Peer, sender: From) -> Routing:
        return Routing(*sender, "ccp", peer.party_id, ((HOP_HEADER, self._own_id or "unnamed"),))

    async def _checked(
        self, answer: Delivered, request: VerifiedInstallationRequest, at: datetime, peer: Peer
    ) -> Found:
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
                (contract, installation.answer(contract, session_id, at, len(good) - place))
                for place, contract in enumerate(good, start=1)
            ],
        )

    async def _standing(self, contracts: Sequence[SignedContract], peer: Peer, *, named: bool) -> Standing:
        """named: the answer names the vehicle with each contract."""
        for contract in contracts:
            if await self._store.read(holder(contract.emaid)) not in (None, contract.pcid):
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
        if item.pcid not in (None, pcid):
            raise MismatchError("The answer is for another vehicle.")
        response = installation.read_response(item.message, namespace)
        if session_id is not None and response.parsed.message.Header.SessionID != session_id:
            raise MismatchError("The answer is for another session.")
        asked = AskedLater()
        verified = installation.verify_response(
            response, emaid=item.emaid, root=root, anchors=self._anchors(), revocation=asked, at=at
        )
        # As with the vehicle's own chain: what is known to be revoked is not handed on; what is not known is the peer's
        # to answer for now, and is asked for afterwards.
        for chain in asked.chains:
            await self._check(chain, at)
        return verified.signed_contract(pcid, item.metadata, at)

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
        if not line.calls.has_room(name):
            self._metrics.peer_asked(to, operation, "limited", 0.0)
            raise share_used_up(to)
        line.circuits.check(name, to)
        told = {"peer": to, "operation": operation, "trace_id": caller.trace_id}
        count = self._stopwatch(to, operation)
        try:
            with line.calls.taken(name):
                answer = await send(line.addressed, self._addressed(line.peer, sender))
        except ClientError as exc:
            match _says_of_peer(exc):
                case True:
                    line.circuits.succeeded(name)
                case False:
                    line.circuits.failed(name)
                case None:
                    line.circuits.unused(name)
            count(exc.code)
            _log.info("request passed on", outcome=exc.code, status=exc.status, there=exc.trace_id, **told)
            raise
        except (MismatchError, EXIError) as exc:
            line.circuits.failed(name)
            count(exc.code)
            _log.warning("peer's answer not taken", outcome=exc.code, reason=str(exc), **told)
            raise
        except VerificationError as exc:
            # It may trust roots that we do not, or show what has expired, and be well.
            line.circuits.succeeded(name)
            count(exc.code)
            _log.warning("peer's answer not taken", outcome=exc.code, reason=str(exc), **told)
            raise
        except CCPError as exc:  # Of ours: the database does not answer, say.
            line.circuits.unused(name)
            count(exc.code)
            raise
        except BaseException:  # The caller has gone, or a defect of ours.
            line.circuits.unused(name)
            raise
        line.circuits.succeeded(name)
        _log.info("request passed on", outcome="ok", ms=round(count("ok") * 1000, 2), **told)
        return answer

    def _stopwatch(self, peer: str, operation: str) -> Callable[[str], float]:
        """Begins to measure. Returns what to call with the outcome in the end: it counts, and tells the seconds."""
        began = time.monotonic()

        def over(outcome: str) -> float:
            seconds = time.monotonic() - began
            self._metrics.peer_asked(peer, operation, outcome, seconds)
            return seconds

        return over


def _silent(name: str, after: float | None = None) -> Unavailable:
    """after: seconds that the peer asks to wait."""
    return Unavailable(f"The pool {name} does not answer now; try again later.", retry_after=whole_seconds(after))


def _problem(asked: asyncio.Task[Found | None], name: str) -> Unavailable | None:
    """What kept a peer from answering, of a task that is over."""
    if asked.cancelled():  # There was no time left.
        return _silent(name)
    failure = asked.exception()
    return failure if isinstance(failure, Unavailable) else None


def _says_of_peer(exc: ClientError) -> bool | None:
    """Whether a peer that was asked is well (True), is not (False), or neither can be told.

    A pool that says in the API's own shape that it cannot now may mean this request alone (evidence that it cannot
    have, say): no caller shall be able to have a peer left alone that others need.
    """
    if isinstance(exc, _FAILED) or exc.status is None:
        return False
    if exc.status in (502, 503) and exc.trace_id is not None:
        return None
    return exc.status < 500
