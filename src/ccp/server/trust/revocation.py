"""Revocation evidence: fetched when a contract is published, refreshed in the background, only read for a delivery.

    chains = DeferredRevocation()
    verified = verify.check_response(…, revocation=chains, now=at)    # everything but revocation
    cleared = await service.ensure_good(chains.chains, at)                      # RevokedError, Unavailable

Addresses come out of certificates, so nothing is fetched but for a `VerifiedChain`, and always through the guarded
client; a CRL address that the operator configured may be private. A CRL comes first: one fetch answers for every
certificate of its issuer. Where there is none, each certificate's OCSP responder is asked, and asked again by the sweep
for as long as the certificate lives. Neither a publisher nor the sweep waits long for a host that does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from ccp.errors import CCPError, RevokedError, Unavailable, VerificationError, strip_tracebacks
from ccp.server.external.host_limits import KeyedSlots
from ccp.server.external.outbound import OutboundClient, OutboundError
from ccp.server.runtime.background import BackgroundTasks, PeriodicTask
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.server.settings import RevocationMode, Settings
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import anchors
from ccp.server.storage.queries import revocation as queries
from ccp.server.trust.clearance import RevocationCleared, clear_chains
from ccp.server.trust.configured_issuers import ConfiguredIssuers
from ccp.server.trust.crl_reader import CRLReader
from ccp.server.trust.revocation_fetcher import OCSP_TIMEOUT, RevocationFetcher, host_label
from ccp.server.trust.revocation_refresh import refresh_in_order, stored_certificate
from ccp.x509.certificates import Certificate
from ccp.x509.crl_ocsp import build_ocsp_request, read_ocsp
from ccp.x509.distribution_points import distribution_point_names
from ccp.x509.issuer_map import IssuerMap
from ccp.x509.path_validation import VerifiedChain
from ccp.x509.revocation_evidence import (
    CertificateRef,
    Evidence,
    EvidenceError,
    LoadedCRL,
    RevocationStatus,
    certificate_ref,
    certificate_refs,
    issuer_pairs,
)
from ccp.x509.revocation_policy import (
    HardFailRevocation,
    RevocationPolicy,
    RevocationState,
    SoftFailRevocation,
    check_refs,
)

_log = structlog.get_logger("ccp.server.trust.revocation")
T = TypeVar("T")
Pair = tuple[Certificate, Certificate]
"""A certificate and its issuer's."""

PUBLICATION_TIMEOUT: Final = 3.0  # What a publisher waits in all. What is under way then goes on without it.

_MIN_REFRESH_DELAY: Final = timedelta(minutes=1)
_MAX_REFRESH_DELAY: Final = queries.MAX_REFRESH  # So that a revocation is seen within a day whatever nextUpdate says.
_RETRY: Final = timedelta(minutes=2)  # After a refresh that failed; the breaker spares hosts that are down.
_RETRY_UNKNOWN: Final = timedelta(minutes=10)  # Responders learn of new certificates late, not never.
_ROUND_SECONDS: Final = 15.0
_BATCH: Final = 200
_BACKGROUND: Final = 64
# Certificates that one caller makes the pool ask about at a time. As many requests may wait for one host.
_MAX_ASKED: Final = 1_000
_LISTS_AT_A_TIME: Final = 2  # Of one issuer: each may be 16 MiB in memory.
_LONG_RESPONSE: Final = 8_192  # Bytes of an OCSP response that is read in a thread: it may speak of many certificates.

# Callers besides parties, in the queues for a host.
_VEHICLES: Final = "<vehicles>"
_SWEEP: Final = "<sweep>"


@dataclass(frozen=True, slots=True)
class RefreshStats:
    """What a round did. more: whether it ended before everything that was due was done."""

    refreshed: int
    failed: int
    more: bool


class RevocationService:
    """One for each worker. Close it when done; `sweeping` is its background task."""

    def __init__(
        self,
        store: Store,
        outbound: OutboundClient,
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
        self.rules: Final = RevocationPolicy(
            enabled=settings.revocation is not RevocationMode.OFF,
            required=settings.revocation is RevocationMode.REQUIRE,
            crl_urls=settings.crl_urls,
            grace=timedelta(seconds=settings.revocation_grace),
        )
        self.recent: Final = queries.RevocationCache()
        self._sha256: Final = IssuerMap(dict.fromkeys(settings.ocsp_sha256, True))
        self.issuers: Final = ConfiguredIssuers(store, now)
        self.issuers.add("crl_urls", self.rules.issuers)
        self.issuers.add("ocsp_sha256", self._sha256)
        self._store: Final = store
        self._fetcher: Final = RevocationFetcher(outbound)
        self._reader: Final = CRLReader()
        self._reading: Final = BlockingCalls("reading of an OCSP response", max_threads=2, timeout=10.0)
        self._lists: Final = KeyedSlots(_LISTS_AT_A_TIME)
        self._now: Final = now
        self._checked_now: Final = checked_now
        self._jitter: Final = jitter
        self._flights: Final[dict[object, asyncio.Task[Any]]] = {}
        self._background: Final[set[asyncio.Task[Any]]] = set()
        self._callers: Final[Counter[str]] = Counter()  # Certificates that are asked about, by caller.

    async def close(self) -> None:
        running = [*self._flights.values(), *self._background]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # --- Publishing ---

    async def ensure_good(
        self, chains: Sequence[VerifiedChain], at: datetime, *, caller: str = ""
    ) -> RevocationCleared:
        """Establish that no certificate below the roots is revoked; fetch what is needed and not there.

        caller: the party that publishes; parties share each responder's rate in turn.
        Raises RevokedError; VerificationError where a certificate names no address but has to, or none that could ever
        be called; Unavailable when the status of a certificate cannot be established now.
        """
        await self.issuers.note(chains)
        if not self.rules.enabled:
            await self._store.write(self._watched_from_now(chains, at))
        stored = await self.evaluate(chains)
        try:
            return clear_chains(stored, chains, at)
        except Unavailable:
            failures = await self.fetch_missing(stored.missing, at, caller=caller)
        return clear_chains(await self.evaluate(chains, failures), chains, at)

    async def evaluate_with_fetch(
        self, chains: Sequence[VerifiedChain], at: datetime, *, caller: str = ""
    ) -> HardFailRevocation:
        """A judge over what is known of these chains, what was missing fetched as far as it can be had. For dry runs:
        nothing is asked about again.
        """
        await self.issuers.note(chains)
        stored = await self.evaluate(chains)
        with contextlib.suppress(RevokedError, VerificationError, Unavailable):
            clear_chains(stored, chains, at)
        failures = await self.fetch_missing(stored.missing, at, watch=False, caller=caller)
        return await self.evaluate(chains, failures)

    async def evaluate(
        self,
        chains: Iterable[VerifiedChain],
        failures: dict[tuple[str, int], Unavailable] | None = None,
    ) -> HardFailRevocation:
        """A judge over what is known now of these chains. It fetches nothing."""
        keys = certificate_refs(chains) if self.rules.enabled else ()
        return HardFailRevocation(await self._store.read(queries.load(keys, self.rules)), self.rules, failures or {})

    def _watched_from_now(self, chains: Iterable[VerifiedChain], at: datetime) -> Query[None]:
        """Have evidence fetched as soon as the policy is not `off` any more: contracts that are published now need it
        then.
        """
        for certificate, issuer in dict.fromkeys(pair for chain in chains for pair in issuer_pairs(chain)):
            if certificate.status_urls.present:
                key = issuer.issuer_key_id, certificate.serial_number
                yield from queries.watch(key, certificate.der, issuer.der, certificate.not_after, at)

    async def fetch_missing(
        self,
        missing: Iterable[Pair],
        at: datetime,
        *,
        watch: bool = True,
        timeout: float = PUBLICATION_TIMEOUT,  # noqa: ASYNC109  the fetches continue
        caller: str = "",
        max_asked: int = _MAX_ASKED,
    ) -> dict[tuple[str, int], Unavailable]:
        """Fetch evidence for certificates of verified chains, all at the same time, and keep it.

        Waits so long at most; what takes longer goes on. Requests of one caller for the same certificate share one
        exchange; of different callers they do not, so that none waits in another's queue.
        watch: refresh the evidence from now on. max_asked: certificates that this caller may have asked about at a
        time. Returns what could not be had, and why.
        """
        waiting: dict[asyncio.Task[None], list[tuple[str, int]]] = {}
        failures: dict[tuple[str, int], Unavailable] = {}
        for certificate, issuer in missing:
            key = issuer.issuer_key_id, certificate.serial_number
            is_new = (key, caller) not in self._flights
            if is_new and self._callers[caller] >= max_asked:
                failures[key] = EvidenceError("The caller makes the pool ask about too many certificates at a time.")
                continue
            task = self._single_flight((key, caller), partial(self._ask, certificate, issuer, at, watch, caller))
            if is_new:
                self._callers[caller] += 1
                task.add_done_callback(partial(self._asked_for, caller))
            waiting.setdefault(task, []).append(key)
        if not waiting:
            return failures
        done, late = await asyncio.wait(waiting, timeout=timeout)
        for task in late:
            failures.update(dict.fromkeys(waiting[task], EvidenceError("It takes longer than a request can wait.")))
        for task in done:
            if task.cancelled():
                failures.update(dict.fromkeys(waiting[task], Unavailable("The pool is being stopped.")))
            elif exc := task.exception():
                if not isinstance(exc, Unavailable):
                    raise exc
                failures.update(dict.fromkeys(waiting[task], strip_tracebacks(exc)))
        return failures

    # --- Delivering ---

    async def check_vehicle(self, chain: VerifiedChain, at: datetime) -> None:
        """Refuse a vehicle whose chain is known to be revoked. Fetches nothing while the vehicle waits.

        A pool meets a vehicle for the first time when that asks, so missing evidence is asked for behind its back and
        held against it only where the policy is `require`. Raises RevokedError, Unavailable, VerificationError.
        """
        keys = self.refs_of(chain)
        self.evaluate_vehicle(chain, keys, await self._store.read(queries.load(keys, self.rules)), at)

    def refs_of(self, chain: VerifiedChain | None) -> tuple[CertificateRef, ...]:
        """What has to be known to judge a vehicle; nothing where that is switched off."""
        return certificate_refs((chain,)) if chain is not None and self.rules.enabled else ()

    def evaluate_vehicle(
        self, chain: VerifiedChain, keys: Sequence[CertificateRef], known: RevocationState, at: datetime
    ) -> None:
        """As `check_vehicle`, by what is known of these keys of its."""
        if not self.rules.enabled:
            return
        if self.issuers.concerns(chain):
            self._run_in_background("configured_issuers", self._learn_run_in_background(chain))
        try:
            return check_refs(keys, known, self.rules, at)
        except (RevokedError, Unavailable):
            pass
        # Only a vehicle that something is held against, or not known of, needs the sentences.
        stored = SoftFailRevocation(known, self.rules, grace=self.rules.grace)
        try:
            stored.check(chain, at)
        finally:
            if stored.missing:
                # Vehicles live for decades and ask once or twice: not watched.
                self._run_in_background("vehicle_evidence", self._fetch_run_in_background(stored.missing, at))

    def _run_in_background(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do something that no caller waits for, unless there is much of it."""
        if len(self._background) >= _BACKGROUND:
            work.close()
            return
        task = self._tasks.spawn(name, work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _learn_run_in_background(self, chain: VerifiedChain) -> None:
        try:
            await self.issuers.note((chain,))
        except Unavailable as exc:
            _log.warning("configured issuer not stored", reason=str(exc))

    async def evaluate_for_vehicle(self, chains: Sequence[VerifiedChain]) -> HardFailRevocation:
        """The judge of a delivery, over what is known now. It fetches nothing."""
        keys = certificate_refs(chains) if self.rules.enabled else ()
        known = await self._store.read(queries.load(keys, self.rules))
        return SoftFailRevocation(known, self.rules, grace=self.rules.grace)

    async def _fetch_run_in_background(self, missing: Sequence[Pair], at: datetime) -> None:
        failures = await self.fetch_missing(missing, at, watch=False, caller=_VEHICLES)
        for failure in failures.values():
            _log.warning("evidence fetch failed", reason=str(failure))

    # --- Refreshing ---

    def refresh_task(self) -> PeriodicTask:
        """Sweeps on a schedule. Not critical: evidence that runs out is noticed by each request that needs it."""

        async def run() -> bool:
            return (await self.refresh_due(await self._checked_now() if self._checked_now else self._now())).more

        return PeriodicTask("revocation_sweep", run, lambda: _ROUND_SECONDS * (0.5 + self._jitter()), first_delay=0.0)

    async def refresh_due(self, at: datetime) -> RefreshStats:
        """One round: refresh the lists and the certificates that are due.

        What cannot be fetched is logged and asked for again later. Raises Unavailable.
        """
        if not self.rules.enabled:
            return RefreshStats(0, 0, False)
        by_host: dict[tuple[str, str], list[Callable[[], asyncio.Task[None]]]] = {}
        lists = await self._store.write(queries.due_crls(at, at + _RETRY, _BATCH))
        certificates = await self._store.write(queries.due_certificates(at, at + _RETRY, _BATCH))
        crls = [
            (issuer, due.url, due.names)
            for due in lists
            if (issuer := stored_certificate(due.issuer_certificate, "crl")) is not None
        ]
        for issuer, url, names in (*crls, *await self._never_loaded()):
            job = partial(
                self._single_flight, (issuer.issuer_key_id, url), partial(self._crl, issuer, url, at, names, _SWEEP)
            )
            by_host.setdefault((host_label(url), issuer.issuer_key_id), []).append(job)
        for watched in certificates:
            certificate, its_issuer = (
                stored_certificate(watched.certificate, "watched_certificate"),
                stored_certificate(watched.issuer_certificate, "watched_certificate"),
            )
            if certificate is None or its_issuer is None:
                continue
            key = its_issuer.issuer_key_id, certificate.serial_number
            job = partial(
                self._single_flight, (key, _SWEEP), partial(self._ask, certificate, its_issuer, at, True, _SWEEP)
            )
            host = host_label((*certificate.status_urls.ocsp, "")[0])
            by_host.setdefault((host, its_issuer.issuer_key_id), []).append(job)
        # One after another for each host and issuer: so a publisher that needs the same host is next but one in its
        # queue, and what one CA's certificates name keeps no other CA's evidence waiting.
        outcomes = await asyncio.gather(*(refresh_in_order(host, jobs) for (host, _), jobs in by_host.items()))
        refreshed, failed = sum(done for done, _ in outcomes), sum(not_done for _, not_done in outcomes)
        return RefreshStats(refreshed, failed, _BATCH in (len(lists), len(certificates)))

    async def _never_loaded(self) -> list[tuple[Certificate, str, frozenset[str]]]:
        """Configured lists of trusted CAs that are not there yet: waiting for the first publisher would cost it."""
        if not self.rules.crl_urls:
            return []
        found = {}
        for trusted in await self._store.read(anchors.list_all()):
            issuer = stored_certificate(trusted.certificate, "trust_anchor")
            url = self.rules.configured_crl_of(issuer) if issuer is not None else None
            if issuer is not None and url and not await self._store.read(queries.find_crl(issuer.issuer_key_id, url)):
                found[issuer.issuer_key_id, url] = issuer, url, frozenset[str]()
        return list(found.values())

    # --- Fetching ---

    def _single_flight(
        self, key: object, start: Callable[[], Coroutine[Any, Any, T]], name: str = ""
    ) -> asyncio.Task[T]:
        """The task that does this already, or a new one with this name."""
        task = self._flights.get(key)
        if task is None:
            task = self._flights[key] = asyncio.create_task(start(), name=name)
            task.add_done_callback(lambda done: self._landed(key, done))
        return task

    def _landed(self, key: object, task: asyncio.Task[Any]) -> None:
        del self._flights[key]
        exc = None if task.cancelled() else task.exception()
        # Expected failures are raised to the callers that wait; only defects are reported here.
        if exc is not None and not isinstance(exc, CCPError):
            self._tasks.failed("evidence_fetch", exc)

    def _asked_for(self, caller: str, task: asyncio.Task[None]) -> None:
        """The pool asks about one certificate less for this caller."""
        self._callers[caller] -= 1
        if not self._callers[caller]:
            del self._callers[caller]

    async def _ask(self, certificate: Certificate, issuer: Certificate, at: datetime, watch: bool, caller: str) -> None:
        """Get and keep evidence for one certificate: from a CRL if there is one, else by OCSP. Raises Unavailable."""
        key = certificate_ref(certificate, issuer)
        identity, lists, responders = (key.issuer, key.serial), self.rules.crls_for(key), certificate.status_urls.ocsp
        failures: list[Unavailable] = []
        if lists and await self._is_listed(key, at):
            return
        for url in lists:
            names = distribution_point_names(certificate, url)
            try:
                # A list may take long; while it does, a responder can be asked, if there is one.
                fetching = self._list(issuer, url, at, names, caller)
                await asyncio.wait_for(fetching, OCSP_TIMEOUT if responders else None)
            except TimeoutError:
                failures.append(EvidenceError("The CRL takes longer than a request can wait."))
            except Unavailable as exc:
                if url == self.rules.configured_crl(
                    key
                ):  # An address of the operator's, which is no partner's business.
                    _log.warning("configured CRL not fetched", url=url, reason=str(exc))
                    exc = EvidenceError("The pool cannot get its issuer's CRL.")
                failures.append(strip_tracebacks(exc))
            else:
                await self._is_listed(key, at)
                return
        for url in responders:
            try:
                evidence = await self._ocsp(certificate, issuer, url, at, caller)
            except Unavailable as exc:
                failures.append(strip_tracebacks(exc))
                continue
            await self._store.write(queries.store_evidence(evidence))
            self.recent.invalidate()
            if evidence.status is RevocationStatus.REVOKED:
                _log.warning("certificate revoked", certificate=certificate.fingerprint, source=evidence.source)
                await self._store.write(queries.unwatch(identity))
            elif watch:
                delay = (
                    self._refresh_delay(evidence.next_update, at)
                    if evidence.status is RevocationStatus.GOOD
                    else _RETRY_UNKNOWN
                )
                await self._store.write(
                    queries.watch(identity, certificate.der, issuer.der, certificate.not_after, at + delay)
                )
            return
        raise failures.pop() if failures else EvidenceError("It names no address that can be asked.")

    async def _is_listed(self, key: CertificateRef, at: datetime) -> bool:
        """Whether a CRL answers for a certificate now. Then its own responder need not be asked again."""
        known = await self._store.read(queries.load([key], self.rules))
        if not isinstance(known.find_good(key, self.rules, at), LoadedCRL):
            return False
        await self._store.write(queries.unwatch((key.issuer, key.serial)))
        return True

    async def _ocsp(
        self, certificate: Certificate, issuer: Certificate, url: str, at: datetime, caller: str
    ) -> Evidence:
        request = build_ocsp_request(certificate, issuer, bool(self._sha256.of(issuer)))
        body = await self._fetcher.ocsp(url, request, issuer=issuer.issuer_key_id, caller=caller)
        if len(body) > _LONG_RESPONSE:
            return await self._reading.run(read_ocsp, body, certificate, issuer, at, url)
        return read_ocsp(body, certificate, issuer, at, url)

    async def _list(self, issuer: Certificate, url: str, at: datetime, names: frozenset[str], caller: str) -> None:
        """Get one list. One exchange serves every caller, but for one that its caller's own limits kept from the host.

        Raises Unavailable.
        """
        start = partial(self._crl, issuer, url, at, names, caller)
        flight = self._single_flight((issuer.issuer_key_id, url), start, caller)
        if flight.get_name() != caller:
            try:
                return await asyncio.shield(flight)
            except OutboundError as exc:
                if exc.host_failed:
                    raise
            flight = self._single_flight((issuer.issuer_key_id, url), start, caller)
        await asyncio.shield(flight)

    async def _crl(self, issuer: Certificate, url: str, at: datetime, names: frozenset[str], caller: str) -> None:
        """Fetch, verify and load one list, unless the one we have is still the newest. Raises Unavailable.

        names: keys of the other names that a certificate has for the place. caller: who asks first.
        """
        async with self._lists.hold(issuer.issuer_key_id):
            await self._refresh_crl(issuer, url, at, names, caller)

    async def _refresh_crl(
        self, issuer: Certificate, url: str, at: datetime, names: frozenset[str], caller: str
    ) -> None:
        name = issuer.issuer_key_id
        configured = url == self.rules.configured_crl_of(issuer)
        kept = await self._store.read(queries.find_crl(name, url))
        headers = {}
        if kept and kept.etag:
            headers["If-None-Match"] = kept.etag
        if kept and kept.last_modified:
            headers["If-Modified-Since"] = kept.last_modified
        answer = await self._fetcher.crl(url, issuer=name, caller=caller, block_private=not configured, headers=headers)
        if answer.status == 304:
            if kept is None:
                raise EvidenceError("The CRL's server says that nothing has changed, but there was no list before.")
            if at > kept.next_update:
                raise EvidenceError("The CRL is stale, and its server has no newer one.")
            await self._store.write(queries.keep_crl(name, url, at, at + self._refresh_delay(kept.next_update, at)))
            return
        number = kept.number if kept else None
        read = await self._reader.read(answer.body, issuer, at, number, None if configured else url, names)
        loaded = await self._store.write(
            queries.store_crl(
                read,
                url=url,
                issuer_certificate=issuer.der,
                etag=answer.headers.get("etag"),
                last_modified=answer.headers.get("last-modified"),
                now=at,
                refresh_at=at + self._refresh_delay(read.next_update, at),
                names=names,
            )
        )
        self.recent.invalidate()
        if not loaded:
            raise EvidenceError("The CRL is older than the one before.")
        _log.info("CRL loaded", issuer=issuer.fingerprint, url=url, number=read.number, revoked=len(read.revoked))

    def _refresh_delay(self, next_update: datetime, at: datetime) -> timedelta:
        """How long to leave it at that: half of what is left, give or take a tenth of it."""
        left = (next_update - at) * (0.4 + 0.2 * self._jitter())
        return min(max(left, _MIN_REFRESH_DELAY), _MAX_REFRESH_DELAY)
