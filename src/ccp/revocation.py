"""Revocation evidence: fetched when a contract is published, refreshed in the background, only read for a delivery.

    chains = AskedLater()
    verified = installation.verify_response(…, revocation=chains, at=at)    # everything but revocation
    cleared = await service.require(chains.chains, at)                      # RevokedError, Unavailable

Addresses come out of certificates, so nothing is fetched but for a `VerifiedChain`, and always through the guarded
client; a CRL address that the operator configured may be private. A CRL comes first: one fetch answers for every
certificate of its issuer. Where there is none, each certificate's OCSP responder is asked, and asked again by the sweep
for as long as the certificate lives. Neither a publisher nor the sweep waits long for a host that does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import structlog

from ccp.background import BackgroundTasks, PeriodicTask
from ccp.errors import CCPError, ChainError, RevokedError, Unavailable, VerificationError
from ccp.outbound import Answer, Outbound, OutboundError, host_of
from ccp.pki.certificates import Certificate
from ccp.pki.evidence import (
    Evidence,
    EvidenceError,
    ForVehicles,
    Key,
    Known,
    LoadedCRL,
    Rules,
    Status,
    StoredEvidence,
    below_root,
    check_keys,
    key_of,
    keys_of,
    longest,
)
from ccp.pki.paths import VerifiedChain
from ccp.pki.statements import build_ocsp_request, read_crl, read_ocsp
from ccp.settings import RevocationPolicy, Settings
from ccp.store import Store, anchors, unknown
from ccp.store import evidence as questions
from ccp.store.steps import Steps

_log = structlog.get_logger("ccp.revocation")
T = TypeVar("T")
Pair = tuple[Certificate, Certificate]
"""A certificate and its issuer's."""

OCSP_OCTETS: Final = 131_072  # A response with a responder's chain takes some 5,000.
CRL_OCTETS: Final = 16_777_216  # Some 400,000 entries; a CA with more has to split its list or to offer OCSP.
OCSP_SECONDS: Final = 2.0
CRL_SECONDS: Final = 30.0  # The largest list at half a megabyte a second; a publisher does not wait for it.
PUBLISH_SECONDS: Final = 3.0  # What a publisher waits in all. What is under way then goes on without it.

_SHORTEST_REST: Final = timedelta(minutes=1)
_LONGEST_REST: Final = questions.MAX_REFRESH  # So that a revocation is seen within a day whatever nextUpdate says.
_RETRY: Final = timedelta(minutes=2)  # After a refresh that failed; the breaker spares hosts that are down.
_RETRY_UNKNOWN: Final = timedelta(minutes=10)  # Responders learn of new certificates late, not never.
_ROUND_SECONDS: Final = 15.0
_BATCH: Final = 200
_BACKGROUND: Final = 64

_PER_SECOND: Final = 20.0  # Requests to one host; the field's responders are small machines.
_BURST: Final = 20
_TOLERATED: Final = 3  # Failures in a row before a host is left alone.
_REMEMBERED: Final = 1024  # Hosts, for the limit; those that fail are remembered until they answer.
_PAUSE: Final = (30.0, 600.0)  # Seconds it is left alone: at first, and at most.


@dataclass(frozen=True, slots=True)
class Cleared:
    """Chains that nothing is held against.

    keys: for the contract, so that its delivery can ask again. sentences: what each certificate's standing rests on.
    warnings: those of them that rest on nothing.
    """

    keys: tuple[Key, ...]
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Swept:
    """What a round did. more: whether it ended before everything that was due was done."""

    refreshed: int
    failed: int
    more: bool


class RevocationService:
    """One for each worker. Close it when done; `sweeping` is its background task."""

    def __init__(
        self,
        store: Store,
        outbound: Outbound,
        settings: Settings,
        now: Callable[[], datetime],
        jitter: Callable[[], float] = random.random,
        background: BackgroundTasks | None = None,
        checked_now: Callable[[], Awaitable[datetime]] | None = None,
    ) -> None:
        """jitter: a number from 0 to 1, anew each time; it spreads what would fall due at the same moment.

        background: counts and logs what fails with no request waiting for it. checked_now: the time for sweeps, which
        remove what is past; raises Unavailable where the clock is implausible; None for `now`.
        """
        self._tasks: Final = background or BackgroundTasks()
        self.rules: Final = Rules(
            checked=settings.revocation is not RevocationPolicy.OFF,
            required=settings.revocation is RevocationPolicy.REQUIRE,
            crl_urls=settings.crl_urls,
            stale_grace=timedelta(seconds=settings.stale_grace),
        )
        self.recent: Final = questions.Recent()
        self._sha256: Final = frozenset(settings.ocsp_sha256)
        self._store: Final = store
        self._outbound: Final = outbound
        self._now: Final = now
        self._checked_now: Final = checked_now
        self._jitter: Final = jitter
        self._hosts: Final = _Hosts()
        self._flights: Final[dict[object, asyncio.Task[Any]]] = {}
        self._background: Final[set[asyncio.Task[Any]]] = set()

    async def close(self) -> None:
        running = [*self._flights.values(), *self._background]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # --- Publishing ---

    async def require(self, chains: Sequence[VerifiedChain], at: datetime) -> Cleared:
        """Establish that no certificate below the roots is revoked; fetch what is needed and not there.

        Raises RevokedError; VerificationError where a certificate names no address but has to; Unavailable when the
        status of a certificate cannot be established now.
        """
        if not self.rules.checked:
            await self._store.write(self._watched_from_now(chains, at))
        stored = await self.stored(chains)
        try:
            return _judge(stored, chains, at)
        except Unavailable:
            failures = await self.gather(stored.missing, at)
        return _judge(await self.stored(chains, failures), chains, at)

    async def gathered(self, chains: Sequence[VerifiedChain], at: datetime) -> StoredEvidence:
        """A judge over what is known of these chains, what was missing fetched as far as it can be had. For dry runs:
        nothing is asked about again.
        """
        stored = await self.stored(chains)
        with contextlib.suppress(RevokedError, VerificationError, Unavailable):
            _judge(stored, chains, at)
        failures = await self.gather(stored.missing, at, watch=False)
        return await self.stored(chains, failures)

    async def stored(
        self,
        chains: Iterable[VerifiedChain],
        failures: dict[tuple[str, int], Unavailable] | None = None,
    ) -> StoredEvidence:
        """A judge over what is known now of these chains. It fetches nothing."""
        keys = keys_of(chains) if self.rules.checked else ()
        return StoredEvidence(await self._store.read(questions.known(keys, self.rules)), self.rules, failures or {})

    def _watched_from_now(self, chains: Iterable[VerifiedChain], at: datetime) -> Steps[None]:
        """Have evidence fetched as soon as the policy is not `off` any more: contracts that are published now need it
        then.
        """
        for certificate, issuer in dict.fromkeys(pair for chain in chains for pair in below_root(chain)):
            if certificate.addresses.named:
                key = issuer.issuer_id, certificate.serial_number
                yield from questions.watch(key, certificate.der, issuer.der, certificate.not_after, at)

    async def gather(
        self, missing: Iterable[Pair], at: datetime, *, watch: bool = True, seconds: float = PUBLISH_SECONDS
    ) -> dict[tuple[str, int], Unavailable]:
        """Fetch evidence for certificates of verified chains, all at the same time, and keep it.

        Waits so long at most; what takes longer goes on. Callers that ask for the same certificate share one request.
        watch: refresh the evidence from now on. Returns what could not be had, and why.
        """
        waiting: dict[asyncio.Task[None], list[tuple[str, int]]] = {}
        for certificate, issuer in missing:
            key = issuer.issuer_id, certificate.serial_number
            task = self._flight(key, partial(self._ask, certificate, issuer, at, watch))
            waiting.setdefault(task, []).append(key)
        if not waiting:
            return {}
        done, late = await asyncio.wait(waiting, timeout=seconds)
        failures: dict[tuple[str, int], Unavailable] = {}
        for task in late:
            failures.update(dict.fromkeys(waiting[task], EvidenceError("It takes longer than a request can wait.")))
        for task in done:
            if task.cancelled():
                failures.update(dict.fromkeys(waiting[task], Unavailable("The pool is being stopped.")))
            elif exc := task.exception():
                if not isinstance(exc, Unavailable):
                    raise exc
                failures.update(dict.fromkeys(waiting[task], exc))
        return failures

    # --- Delivering ---

    async def check_vehicle(self, chain: VerifiedChain, at: datetime) -> None:
        """Refuse a vehicle whose chain is known to be revoked. Fetches nothing while the vehicle waits.

        A pool meets a vehicle for the first time when that asks, so missing evidence is asked for behind its back and
        held against it only where the policy is `require`. Raises RevokedError, Unavailable, VerificationError.
        """
        keys = self.keys_of(chain)
        self.judge_vehicle(chain, keys, await self._store.read(questions.known(keys, self.rules)), at)

    def keys_of(self, chain: VerifiedChain | None) -> tuple[Key, ...]:
        """What has to be known to judge a vehicle; nothing where that is switched off."""
        return keys_of((chain,)) if chain is not None and self.rules.checked else ()

    def judge_vehicle(self, chain: VerifiedChain, keys: Sequence[Key], known: Known, at: datetime) -> None:
        """As `check_vehicle`, by what is known of these keys of its."""
        if not self.rules.checked:
            return
        try:
            return check_keys(keys, known, self.rules, at)
        except (RevokedError, Unavailable):
            pass
        # Only a vehicle that something is held against, or not known of, needs the sentences.
        stored = ForVehicles(known, self.rules, grace=self.rules.stale_grace)
        try:
            stored.check(chain, at)
        finally:
            if stored.missing and len(self._background) < _BACKGROUND:
                # Vehicles live for decades and ask once or twice: not watched.
                task = self._tasks.spawn("vehicle_evidence", self._gather_quietly(stored.missing, at))
                self._background.add(task)
                task.add_done_callback(self._background.discard)

    async def stored_for_vehicle(self, chains: Sequence[VerifiedChain]) -> StoredEvidence:
        """The judge of a delivery, over what is known now. It fetches nothing."""
        keys = keys_of(chains) if self.rules.checked else ()
        known = await self._store.read(questions.known(keys, self.rules))
        return ForVehicles(known, self.rules, grace=self.rules.stale_grace)

    async def _gather_quietly(self, missing: Sequence[Pair], at: datetime) -> None:
        failures = await self.gather(missing, at, watch=False)
        for failure in failures.values():
            _log.warning("evidence not fetched", reason=str(failure))

    # --- Refreshing ---

    def sweeping(self) -> PeriodicTask:
        """Sweeps on a schedule. Not critical: evidence that runs out is noticed by each request that needs it."""

        async def run() -> bool:
            return (await self.sweep(await self._checked_now() if self._checked_now else self._now())).more

        return PeriodicTask("revocation_sweep", run, lambda: _ROUND_SECONDS * (0.5 + self._jitter()), first_delay=0.0)

    async def sweep(self, at: datetime) -> Swept:
        """One round: refresh the lists and the certificates that are due.

        What cannot be fetched is logged and asked for again later. Raises Unavailable.
        """
        if not self.rules.checked:
            return Swept(0, 0, False)
        by_host: dict[str, list[Callable[[], asyncio.Task[None]]]] = {}
        lists = await self._store.write(questions.due_crls(at, at + _RETRY, _BATCH))
        certificates = await self._store.write(questions.due_certificates(at, at + _RETRY, _BATCH))
        crls = [(issuer, due.url) for due in lists if (issuer := _readable(due.issuer_certificate, "crl")) is not None]
        for issuer, url in (*crls, *await self._never_loaded()):
            job = partial(self._flight, (issuer.issuer_id, url), partial(self._crl, issuer, url, at))
            by_host.setdefault(_authority(url), []).append(job)
        for watched in certificates:
            certificate, its_issuer = (
                _readable(watched.certificate, "watched_certificate"),
                _readable(watched.issuer_certificate, "watched_certificate"),
            )
            if certificate is None or its_issuer is None:
                continue
            key = its_issuer.issuer_id, certificate.serial_number
            job = partial(self._flight, key, partial(self._ask, certificate, its_issuer, at, True))
            by_host.setdefault(_authority((*certificate.addresses.ocsp, "")[0]), []).append(job)
        # One after another for each host: so a publisher that needs the same host is next but one in its queue.
        outcomes = await asyncio.gather(*(_one_by_one(host, jobs) for host, jobs in by_host.items()))
        refreshed, failed = sum(done for done, _ in outcomes), sum(not_done for _, not_done in outcomes)
        return Swept(refreshed, failed, _BATCH in (len(lists), len(certificates)))

    async def _never_loaded(self) -> list[tuple[Certificate, str]]:
        """Configured lists of trusted CAs that are not there yet: waiting for the first publisher would cost it."""
        if not self.rules.crl_urls:
            return []
        found = {}
        for trusted in await self._store.read(anchors.every()):
            issuer = _readable(trusted.certificate, "trust_anchor")
            url = self.rules.crl_of(issuer) if issuer is not None else None
            if issuer is not None and url and not await self._store.read(questions.crl(issuer.issuer_id, url)):
                found[issuer.issuer_id, url] = issuer, url
        return list(found.values())

    # --- Fetching ---

    def _flight(self, key: object, start: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """The task that does this already, or a new one."""
        task = self._flights.get(key)
        if task is None:
            task = self._flights[key] = asyncio.create_task(start())
            task.add_done_callback(lambda done: self._landed(key, done))
        return task

    def _landed(self, key: object, task: asyncio.Task[Any]) -> None:
        del self._flights[key]
        exc = None if task.cancelled() else task.exception()
        # What cannot be had now is told to those who wait; a publisher that went away has no use for it.
        if exc is not None and not isinstance(exc, CCPError):
            self._tasks.failed("evidence_fetch", exc)

    async def _ask(self, certificate: Certificate, issuer: Certificate, at: datetime, watch: bool) -> None:
        """Get and keep evidence for one certificate: from a CRL if there is one, else by OCSP. Raises Unavailable."""
        key = key_of(certificate, issuer)
        identity, lists, responders = (key.issuer, key.serial), self.rules.lists(key), certificate.addresses.ocsp
        failures: list[Unavailable] = []
        if lists and await self._is_listed(key, at):
            return
        for url in lists:
            flight = self._flight((key.issuer, url), partial(self._crl, issuer, url, at))
            try:
                # A list may take long; while it does, a responder can be asked, if there is one.
                await asyncio.wait_for(asyncio.shield(flight), OCSP_SECONDS if responders else None)
            except TimeoutError:
                failures.append(EvidenceError("The CRL takes longer than a request can wait."))
            except Unavailable as exc:
                if url == self.rules.configured(key):  # An address of the operator's, which is no partner's business.
                    _log.warning("configured CRL not fetched", url=url, reason=str(exc))
                    exc = EvidenceError("The pool cannot get its issuer's CRL.")
                failures.append(exc)
            else:
                await self._is_listed(key, at)
                return
        for url in responders:
            try:
                evidence = await self._ocsp(certificate, issuer, url, at)
            except Unavailable as exc:
                failures.append(exc)
                continue
            await self._store.write(questions.learn(evidence))
            self.recent.forget()
            if evidence.status is Status.REVOKED:
                _log.warning("certificate revoked", certificate=certificate.fingerprint, source=evidence.source)
                await self._store.write(questions.unwatch(identity))
            elif watch:
                rest = self._rest(evidence.next_update, at) if evidence.status is Status.GOOD else _RETRY_UNKNOWN
                await self._store.write(
                    questions.watch(identity, certificate.der, issuer.der, certificate.not_after, at + rest)
                )
            return
        raise failures[-1] if failures else EvidenceError("It names no address that can be asked.")

    async def _is_listed(self, key: Key, at: datetime) -> bool:
        """Whether a CRL answers for a certificate now. Then its own responder need not be asked again."""
        known = await self._store.read(questions.known([key], self.rules))
        if not isinstance(known.good(key, self.rules, at), LoadedCRL):
            return False
        await self._store.write(questions.unwatch((key.issuer, key.serial)))
        return True

    async def _ocsp(self, certificate: Certificate, issuer: Certificate, url: str, at: datetime) -> Evidence:
        sha256 = issuer.fingerprint in self._sha256 or issuer.subject_cn in self._sha256
        answer = await self._call(
            "POST",
            url,
            guarded=True,
            headers={"Content-Type": "application/ocsp-request", "Accept": "application/ocsp-response"},
            content=build_ocsp_request(certificate, issuer, sha256),
            seconds=OCSP_SECONDS,
            octets=OCSP_OCTETS,
        )
        if answer.status != 200:
            raise EvidenceError(f"{_authority(url)} answered with the HTTP status {answer.status}.")
        return read_ocsp(answer.body, certificate, issuer, at, url)

    async def _crl(self, issuer: Certificate, url: str, at: datetime) -> None:
        """Fetch, verify and load one list, unless the one we have is still the newest. Raises Unavailable."""
        name = issuer.issuer_id
        configured = url == self.rules.crl_of(issuer)
        kept = await self._store.read(questions.crl(name, url))
        headers = {}
        if kept and kept.etag:
            headers["If-None-Match"] = kept.etag
        if kept and kept.last_modified:
            headers["If-Modified-Since"] = kept.last_modified
        answer = await self._call(
            "GET", url, guarded=not configured, headers=headers, seconds=CRL_SECONDS, octets=CRL_OCTETS
        )
        if answer.status == 304 and kept:
            if at > kept.next_update:
                raise EvidenceError("The CRL is stale, and its server has no newer one.")
            await self._store.write(questions.crl_unchanged(name, url, at, at + self._rest(kept.next_update, at)))
            return
        if answer.status != 200:
            raise EvidenceError(f"{_authority(url)} answered with the HTTP status {answer.status}.")
        # A long list takes a second; deliveries go on meanwhile.
        read = await asyncio.to_thread(
            read_crl, answer.body, issuer, at, kept.number if kept else None, None if configured else url
        )
        loaded = await self._store.write(
            questions.load_crl(
                read,
                url=url,
                issuer_certificate=issuer.der,
                etag=answer.headers.get("etag"),
                last_modified=answer.headers.get("last-modified"),
                at=at,
                refresh_at=at + self._rest(read.next_update, at),
            )
        )
        self.recent.forget()
        if not loaded:
            raise EvidenceError("The CRL is older than the one before.")
        _log.info("CRL loaded", issuer=issuer.fingerprint, url=url, number=read.number, revoked=len(read.revoked))

    def _rest(self, next_update: datetime, at: datetime) -> timedelta:
        """How long to leave it at that: half of what is left, give or take a tenth of it."""
        left = (next_update - at) * (0.4 + 0.2 * self._jitter())
        return min(max(left, _SHORTEST_REST), _LONGEST_REST)

    async def _call(self, method: str, url: str, **options: Any) -> Answer:
        """One exchange under the host's limit and breaker. Raises Unavailable."""
        host = _authority(url)
        await self._hosts.turn(host)
        try:
            answer = await self._outbound.request(method, url, **options)
        except OutboundError as exc:
            exc.retry_after = self._hosts.failed(host)
            raise
        if answer.status >= 500 or answer.status == 429:
            pause = self._hosts.failed(host)
            raise EvidenceError(f"{host} answered with the HTTP status {answer.status}.", retry_after=pause)
        self._hosts.answered(host)
        return answer


class _Hosts:
    """How often each host may be called, and which are left alone because they do not answer."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._left_alone_until: dict[str, float] = {}

    async def turn(self, host: str) -> None:
        """Wait until the host may be called. Raises EvidenceError when it is left alone."""
        now = asyncio.get_running_loop().time()
        left = self._left_alone_until.get(host, now) - now
        if left > 0:
            raise EvidenceError(
                f"{host} failed several times and is left alone for a while.", retry_after=math.ceil(left)
            )
        if len(self._due) >= _REMEMBERED:
            self._due = {name: due for name, due in self._due.items() if due > now}
        due = max(self._due.get(host, now), now)
        self._due[host] = due + 1 / _PER_SECOND
        wait = due - now - _BURST / _PER_SECOND
        if wait > 0:
            await asyncio.sleep(wait)

    def failed(self, host: str) -> int | None:
        """Returns for how many seconds it is left alone, if it is."""
        failures = self._failures[host] = self._failures.get(host, 0) + 1
        if failures < _TOLERATED:
            return None
        pause = min(_PAUSE[0] * 2.0 ** min(failures - _TOLERATED, 10), _PAUSE[1])
        self._left_alone_until[host] = asyncio.get_running_loop().time() + pause
        return math.ceil(pause)

    def answered(self, host: str) -> None:
        self._failures.pop(host, None)
        self._left_alone_until.pop(host, None)


def _judge(stored: StoredEvidence, chains: Sequence[VerifiedChain], at: datetime) -> Cleared:
    """Judge all chains, and tell the gravest kind of problem: what is revoked stays so, what is missing may come."""
    sentences = []
    problems: list[CCPError] = []
    for chain in chains:
        try:
            sentences.append(stored.check(chain, at))
        except (RevokedError, VerificationError, Unavailable) as exc:
            problems.append(exc)
    for kind in (RevokedError, VerificationError, Unavailable):
        of_kind = [problem for problem in problems if isinstance(problem, kind)]
        if of_kind:
            error = kind(*dict.fromkeys(message for problem in of_kind for message in problem.messages))
            if isinstance(error, Unavailable):
                error.retry_after = longest(problem for problem in of_kind if isinstance(problem, Unavailable))
            raise error from of_kind[0].__cause__
    return Cleared(keys_of(chains), tuple(sentences), tuple(stored.warnings))


async def _one_by_one(host: str, jobs: Sequence[Callable[[], Awaitable[None]]]) -> tuple[int, int]:
    """Do what there is to do at a host. Returns how much was done and how much was not."""
    failed = 0
    reasons: dict[str, int] = {}
    for job in jobs:
        try:
            await job()
        except Exception as exc:
            failed += 1
            reasons[str(exc)] = reasons.get(str(exc), 0) + 1
    if reasons:
        _log.warning("evidence not refreshed", host=host, reasons=reasons)
    return len(jobs) - failed, failed


def _readable(certificate: bytes, table: str) -> Certificate | None:
    """A stored certificate, None for one that this release cannot read."""
    try:
        return Certificate.load(certificate)
    except ChainError as exc:
        unknown.warn(f"{table}.certificate", str(exc), hashlib.sha256(certificate).hexdigest())
        return None


def _authority(url: str) -> str:
    """Host and port, which limits and breakers go by."""
    try:
        host_of(url)
    except OutboundError:
        return ""
    return urlsplit(url).netloc.lower()
