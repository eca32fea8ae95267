"""Fetches revocation evidence for certificates and stores it: from a CRL if there is one, else by OCSP.

URLs come from certificates, so evidence is fetched only for certificates of a `VerifiedChain`, and with protection
against private addresses; only a CRL URL that the operator configured may be private. CRLs come first, because one
fetch covers every certificate of the issuer.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import structlog

from ccp.errors import CCPError, Unavailable, strip_tracebacks
from ccp.server.external.host_limits import KeyedSlots
from ccp.server.external.outbound import OutboundClient, OutboundError
from ccp.server.runtime.background import BackgroundTasks
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.server.storage import Store
from ccp.server.storage.queries import revocation as queries
from ccp.server.trust.crl_reader import CRLReader
from ccp.server.trust.revocation_client import OCSP_TIMEOUT, RevocationClient
from ccp.x509.certificates import Certificate
from ccp.x509.crl_ocsp import build_ocsp_request, read_ocsp
from ccp.x509.distribution_points import distribution_point_names
from ccp.x509.issuer_map import IssuerMap
from ccp.x509.revocation_evidence import (
    CertificateKey,
    CertificateRef,
    Evidence,
    EvidenceError,
    LoadedCRL,
    RevocationStatus,
    certificate_key,
    certificate_ref,
)
from ccp.x509.revocation_policy import RevocationPolicy

_log = structlog.get_logger("ccp.server.trust.revocation")
T = TypeVar("T")
IssuerPair: TypeAlias = tuple[Certificate, Certificate]
"""A certificate and the certificate of its issuer."""

_MIN_REFRESH_DELAY: Final = timedelta(minutes=1)
_MAX_REFRESH_DELAY: Final = queries.MAX_REFRESH  # A revocation is found within a day, whatever nextUpdate is.
_RETRY_UNKNOWN: Final = timedelta(minutes=10)  # A responder may learn of a new certificate late.
_MAX_CRLS_PER_ISSUER: Final = 2  # Concurrent fetches; each CRL may take 16 MiB of memory.
_LONG_RESPONSE: Final = 8_192  # Bytes. A longer OCSP response is parsed in a thread; it may cover many certificates.


class RevocationFetcher:
    """Fetches each CRL and each certificate's status once at a time (single flight). Belongs to one event loop."""

    def __init__(
        self,
        store: Store,
        outbound: OutboundClient,
        policy: RevocationPolicy,
        cache: queries.RevocationCache,
        sha256_issuers: IssuerMap[bool],
        background: BackgroundTasks,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """cache: invalidated when evidence is stored. sha256_issuers: whose OCSP requests use SHA-256 in CertID.

        background: reports unexpected errors. jitter: a number from 0 to 1, for each refresh delay.
        """
        self._store: Final = store
        self._policy: Final = policy
        self._cache: Final = cache
        self._sha256_issuers: Final = sha256_issuers
        self._background: Final = background
        self._jitter: Final = jitter
        self._client: Final = RevocationClient(outbound)
        self._crl_reader: Final = CRLReader()
        self._ocsp_reading: Final = BlockingCalls("reading of an OCSP response", max_threads=2, timeout=10.0)
        self._crl_slots: Final = KeyedSlots(_MAX_CRLS_PER_ISSUER)
        self._flights: Final[dict[object, asyncio.Task[Any]]] = {}
        self._callers: Final[Counter[str]] = Counter()  # Certificates whose evidence is being fetched, by caller.

    @property
    def queued(self) -> int:
        """The number of fetches in progress, including those that wait for their host."""
        return len(self._flights)

    async def close(self) -> None:
        """Cancel all fetches."""
        running = list(self._flights.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def fetch(
        self,
        missing: Iterable[IssuerPair],
        now: datetime,
        watch: bool,
        timeout: float,  # noqa: ASYNC109  fetches continue after it
        caller: str,
        max_concurrent: int,
    ) -> dict[CertificateKey, Unavailable]:
        """Fetch evidence for several certificates concurrently; see `RevocationService.fetch_missing`."""
        waiting: dict[asyncio.Task[None], list[CertificateKey]] = {}
        failures: dict[CertificateKey, Unavailable] = {}
        for certificate, issuer in missing:
            key = certificate_key(certificate, issuer)
            is_new = (key, caller) not in self._flights
            if is_new and self._callers[caller] >= max_concurrent:
                failures[key] = EvidenceError("The caller makes the pool ask about too many certificates at a time.")
                continue
            task = self.start_certificate(certificate, issuer, now, watch, caller)
            if is_new:
                self._callers[caller] += 1
                task.add_done_callback(partial(self._release_caller, caller))
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

    def start_certificate(
        self, certificate: Certificate, issuer: Certificate, now: datetime, watch: bool, caller: str
    ) -> asyncio.Task[None]:
        """Start to fetch the evidence of a certificate for a caller, or join the fetch that is under way for it."""
        key = certificate_key(certificate, issuer)
        fetch = partial(self._fetch_certificate, certificate, issuer, now, watch, caller)
        return self._single_flight((key, caller), fetch)

    def start_crl(
        self, issuer: Certificate, url: str, now: datetime, names: frozenset[str], caller: str
    ) -> asyncio.Task[None]:
        """Start to fetch a CRL, or join the fetch that is under way.

        names: keys of the other names of the distribution point in a certificate. caller: who starts the fetch; it is
        the name of the task.
        """
        fetch = partial(self._fetch_crl, issuer, url, now, names, caller)
        return self._single_flight((issuer.issuer_key_id, url), fetch, caller)

    def _single_flight(
        self, key: object, start: Callable[[], Coroutine[Any, Any, T]], name: str = ""
    ) -> asyncio.Task[T]:
        task = self._flights.get(key)
        if task is None:
            task = self._flights[key] = asyncio.create_task(start(), name=name)
            task.add_done_callback(lambda done: self._end_flight(key, done))
        return task

    def _end_flight(self, key: object, task: asyncio.Task[Any]) -> None:
        del self._flights[key]
        exc = None if task.cancelled() else task.exception()
        # Expected failures are raised to the waiting callers; only unexpected ones are reported here.
        if exc is not None and not isinstance(exc, CCPError):
            self._background.failed("evidence_fetch", exc)

    def _release_caller(self, caller: str, task: asyncio.Task[None]) -> None:
        self._callers[caller] -= 1
        if not self._callers[caller]:
            del self._callers[caller]

    async def _fetch_certificate(
        self, certificate: Certificate, issuer: Certificate, now: datetime, watch: bool, caller: str
    ) -> None:
        """Fetch and store evidence for one certificate. Raises Unavailable."""
        ref = certificate_ref(certificate, issuer)
        key = ref.issuer, ref.serial
        crl_urls, responders = self._policy.crls_for(ref), certificate.status_urls.ocsp
        failures: list[Unavailable] = []
        if crl_urls and await self._is_covered_by_crl(ref, now):
            return
        for url in crl_urls:
            try:
                # A CRL may take long. If there is a responder, it is asked after a while; the CRL fetch continues.
                fetching = self._await_crl(issuer, url, now, distribution_point_names(certificate, url), caller)
                await asyncio.wait_for(fetching, OCSP_TIMEOUT if responders else None)
            except TimeoutError:
                failures.append(EvidenceError("The CRL takes longer than a request can wait."))
            except Unavailable as exc:
                if url == self._policy.configured_crl(ref):  # Partners must not see a URL that the operator configured.
                    _log.warning("configured CRL not fetched", url=url, reason=str(exc))
                    exc = EvidenceError("The pool cannot get its issuer's CRL.")
                failures.append(strip_tracebacks(exc))
            else:
                await self._is_covered_by_crl(ref, now)
                return
        for url in responders:
            try:
                evidence = await self._fetch_ocsp(certificate, issuer, url, now, caller)
            except Unavailable as exc:
                failures.append(strip_tracebacks(exc))
                continue
            await self._store.write(queries.store_evidence(evidence))
            self._cache.invalidate()
            if evidence.status is RevocationStatus.REVOKED:
                _log.warning("certificate revoked", certificate=certificate.fingerprint, source=evidence.source)
                await self._store.write(queries.unwatch(key))
            elif watch:
                is_good = evidence.status is RevocationStatus.GOOD
                refresh_at = now + (self._refresh_delay(evidence.next_update, now) if is_good else _RETRY_UNKNOWN)
                await self._store.write(
                    queries.watch(key, certificate.der, issuer.der, certificate.not_after, refresh_at)
                )
            return
        raise failures.pop() if failures else EvidenceError("It names no address that can be asked.")

    async def _is_covered_by_crl(self, ref: CertificateRef, now: datetime) -> bool:
        """Whether a current CRL covers a certificate. If so, its OCSP evidence is no longer refreshed."""
        state = await self._store.read(queries.load([ref], self._policy))
        if not isinstance(state.find_good(ref, self._policy, now), LoadedCRL):
            return False
        await self._store.write(queries.unwatch((ref.issuer, ref.serial)))
        return True

    async def _fetch_ocsp(
        self, certificate: Certificate, issuer: Certificate, url: str, now: datetime, caller: str
    ) -> Evidence:
        request = build_ocsp_request(certificate, issuer, bool(self._sha256_issuers.of(issuer)))
        body = await self._client.ocsp(url, request, issuer=issuer.issuer_key_id, caller=caller)
        if len(body) > _LONG_RESPONSE:
            return await self._ocsp_reading.run(read_ocsp, body, certificate, issuer, now, url)
        return read_ocsp(body, certificate, issuer, now, url)

    async def _await_crl(
        self, issuer: Certificate, url: str, now: datetime, names: frozenset[str], caller: str
    ) -> None:
        """Wait for a CRL. All callers share one fetch, unless it failed because of its own caller's limits.

        Raises Unavailable.
        """
        flight = self.start_crl(issuer, url, now, names, caller)
        if flight.get_name() != caller:
            try:
                return await asyncio.shield(flight)
            except OutboundError as exc:
                if exc.host_failed:
                    raise
            flight = self.start_crl(issuer, url, now, names, caller)
        await asyncio.shield(flight)

    async def _fetch_crl(
        self, issuer: Certificate, url: str, now: datetime, names: frozenset[str], caller: str
    ) -> None:
        """Fetch, verify and store a CRL, unless the stored one is the newest. Raises Unavailable."""
        async with self._crl_slots.hold(issuer.issuer_key_id):
            await self._fetch_crl_in_slot(issuer, url, now, names, caller)

    async def _fetch_crl_in_slot(
        self, issuer: Certificate, url: str, now: datetime, names: frozenset[str], caller: str
    ) -> None:
        issuer_id = issuer.issuer_key_id
        is_configured = url == self._policy.configured_crl_of(issuer)
        stored = await self._store.read(queries.find_crl(issuer_id, url))
        headers = {}
        if stored and stored.etag:
            headers["If-None-Match"] = stored.etag
        if stored and stored.last_modified:
            headers["If-Modified-Since"] = stored.last_modified
        response = await self._client.crl(
            url, issuer=issuer_id, caller=caller, block_private=not is_configured, headers=headers
        )
        if response.status == 304:
            if stored is None:
                raise EvidenceError("The CRL's server says that nothing has changed, but there was no list before.")
            if now > stored.next_update:
                raise EvidenceError("The CRL is stale, and its server has no newer one.")
            refresh_at = now + self._refresh_delay(stored.next_update, now)
            await self._store.write(queries.keep_crl(issuer_id, url, now, refresh_at))
            return
        number = stored.number if stored else None
        crl = await self._crl_reader.read(response.body, issuer, now, number, None if is_configured else url, names)
        is_stored = await self._store.write(
            queries.store_crl(
                crl,
                url=url,
                issuer_certificate=issuer.der,
                etag=response.headers.get("etag"),
                last_modified=response.headers.get("last-modified"),
                now=now,
                refresh_at=now + self._refresh_delay(crl.next_update, now),
                names=names,
            )
        )
        self._cache.invalidate()
        if not is_stored:
            raise EvidenceError("The CRL is older than the one before.")
        _log.info("CRL loaded", issuer=issuer.fingerprint, url=url, number=crl.number, revoked=len(crl.revoked))

    def _refresh_delay(self, next_update: datetime, now: datetime) -> timedelta:
        """Time until the next refresh: 40 to 60 percent of the remaining validity, within the limits."""
        delay = (next_update - now) * (0.4 + 0.2 * self._jitter())
        return min(max(delay, _MIN_REFRESH_DELAY), _MAX_REFRESH_DELAY)
