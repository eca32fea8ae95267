"""Revocation service: evidence is fetched at publication, refreshed in the background, and only read at delivery.

    deferred = DeferredRevocation()
    verified = verify.check_response(…, revocation=deferred, now=now)       # everything but revocation
    cleared = await service.ensure_good(deferred.chains, now)               # RevokedError, Unavailable

`revocation_fetcher` fetches and stores evidence, `revocation_client` speaks HTTP, `revocation_refresh` refreshes what
is due, `clearance` combines the results of several chains. Evidence from OCSP is refreshed as long as the certificate
is valid. Neither a publisher nor a refresh waits long for a host that does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from ccp.errors import RevokedError, Unavailable, VerificationError
from ccp.server.external.outbound import OutboundClient
from ccp.server.runtime.background import BackgroundTasks, PeriodicTask
from ccp.server.settings import RevocationMode, Settings
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import revocation as queries
from ccp.server.trust import revocation_refresh
from ccp.server.trust.clearance import RevocationCleared, clear_chains
from ccp.server.trust.configured_issuers import ConfiguredIssuers
from ccp.server.trust.revocation_fetcher import IssuerPair, RevocationFetcher
from ccp.server.trust.revocation_refresh import RefreshStats
from ccp.x509.issuer_map import IssuerMap
from ccp.x509.path_validation import VerifiedChain
from ccp.x509.revocation_evidence import (
    CertificateKey,
    CertificateRef,
    certificate_key,
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

PUBLICATION_TIMEOUT: Final = 3.0
"""Seconds that a publisher waits for all evidence. Fetches under way then continue without it."""
_REFRESH_INTERVAL: Final = 15.0
_MAX_BACKGROUND: Final = 64
# Certificates whose evidence is fetched for one caller at a time. As many requests may be queued for one host.
_MAX_CONCURRENT: Final = 1_000
_VEHICLES: Final = "<vehicles>"  # The caller of fetches for vehicles, in the queues of hosts.


class RevocationService:
    """Revocation checks of one worker. Close it when done; `refresh_task` is its background task."""

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
        """jitter: returns a number from 0 to 1; it spreads refreshes that would be due at the same moment.

        background: counts and logs failures that no request waits for. checked_now: time for refreshes, which remove
        expired data; raises Unavailable if the clock is implausible; None for `now`.
        """
        self._tasks: Final = background or BackgroundTasks()
        self.rules: Final = RevocationPolicy(
            enabled=settings.revocation is not RevocationMode.OFF,
            required=settings.revocation is RevocationMode.REQUIRE,
            crl_urls=settings.crl_urls,
            grace=timedelta(seconds=settings.revocation_grace),
        )
        self.recent: Final = queries.RevocationCache()
        sha256_issuers = IssuerMap(dict.fromkeys(settings.ocsp_sha256, True))
        self.issuers: Final = ConfiguredIssuers(store, now)
        self.issuers.add("crl_urls", self.rules.issuers)
        self.issuers.add("ocsp_sha256", sha256_issuers)
        self._store: Final = store
        self._fetcher: Final = RevocationFetcher(
            store, outbound, self.rules, self.recent, sha256_issuers, self._tasks, jitter
        )
        self._now: Final = now
        self._checked_now: Final = checked_now
        self._jitter: Final = jitter
        self._background: Final[set[asyncio.Task[Any]]] = set()

    @property
    def queued(self) -> int:
        """The number of fetches in progress, including those that wait for their host."""
        return self._fetcher.queued

    async def close(self) -> None:
        """Cancel all fetches."""
        running = list(self._background)
        for task in running:
            task.cancel()
        await self._fetcher.close()
        await asyncio.gather(*running, return_exceptions=True)

    # --- Publication ---

    async def ensure_good(
        self, chains: Sequence[VerifiedChain], now: datetime, *, caller: str = ""
    ) -> RevocationCleared:
        """Ensure that no certificate below the roots is revoked; fetch evidence that is needed and missing.

        caller: the party that publishes; parties share the rate of each responder by round robin.
        Raises RevokedError; VerificationError if a certificate names no URL but has to, or none that can be called;
        Unavailable if the status of a certificate cannot be determined now.
        """
        await self.issuers.learn(chains)
        if not self.rules.enabled:
            await self._store.write(self._watch_for_later(chains, now))
        evaluation = await self.evaluate(chains)
        try:
            return clear_chains(evaluation, chains, now)
        except Unavailable:
            failures = await self.fetch_missing(evaluation.missing, now, caller=caller)
        return clear_chains(await self.evaluate(chains, failures), chains, now)

    async def evaluate_with_fetch(
        self, chains: Sequence[VerifiedChain], now: datetime, *, caller: str = ""
    ) -> HardFailRevocation:
        """Like `evaluate`, after fetching missing evidence. For dry runs: the evidence is not refreshed later."""
        await self.issuers.learn(chains)
        evaluation = await self.evaluate(chains)
        with contextlib.suppress(RevokedError, VerificationError, Unavailable):
            clear_chains(evaluation, chains, now)
        failures = await self.fetch_missing(evaluation.missing, now, watch=False, caller=caller)
        return await self.evaluate(chains, failures)

    async def evaluate(
        self,
        chains: Iterable[VerifiedChain],
        failures: dict[CertificateKey, Unavailable] | None = None,
    ) -> HardFailRevocation:
        """A checker for these chains that uses the stored evidence. Fetches nothing.

        failures: why evidence could not be fetched, by issuer and serial number.
        """
        refs = certificate_refs(chains) if self.rules.enabled else ()
        return HardFailRevocation(await self._store.read(queries.load(refs, self.rules)), self.rules, failures or {})

    def _watch_for_later(self, chains: Iterable[VerifiedChain], now: datetime) -> Query[None]:
        """Register certificates for refresh although the policy is `off`.

        If it is changed, contracts that were published before need evidence at once.
        """
        for certificate, issuer in dict.fromkeys(pair for chain in chains for pair in issuer_pairs(chain)):
            if certificate.status_urls.present:
                key = certificate_key(certificate, issuer)
                yield from queries.watch(key, certificate.der, issuer.der, certificate.not_after, now)

    async def fetch_missing(
        self,
        missing: Iterable[IssuerPair],
        now: datetime,
        *,
        watch: bool = True,
        timeout: float = PUBLICATION_TIMEOUT,  # noqa: ASYNC109  fetches continue after it
        caller: str = "",
        max_asked: int = _MAX_CONCURRENT,
    ) -> dict[CertificateKey, Unavailable]:
        """Fetch evidence for certificates of verified chains concurrently, and store it.

        Requests of one caller for the same certificate share one exchange. Requests of different callers do not, so no
        caller waits in the queue of another one.
        watch: refresh the evidence from now on. timeout: seconds; fetches that take longer continue in the background.
        max_asked: certificates that are fetched for this caller at a time. Returns the failures, by issuer and serial
        number.
        """
        return await self._fetcher.fetch(missing, now, watch, timeout, caller, max_asked)

    # --- Delivery ---

    async def check_vehicle(self, chain: VerifiedChain, now: datetime) -> None:
        """Refuse a vehicle whose chain is known to be revoked. Fetches nothing while the vehicle waits.

        The first request of a vehicle is the first time that the pool sees its certificates. So missing evidence is
        fetched in the background, and refuses the vehicle only if the policy is `require`.
        Raises RevokedError, Unavailable, VerificationError.
        """
        refs = self.refs_of(chain)
        self.evaluate_vehicle(chain, refs, await self._store.read(queries.load(refs, self.rules)), now)

    def refs_of(self, chain: VerifiedChain | None) -> tuple[CertificateRef, ...]:
        """The certificates whose evidence `evaluate_vehicle` needs; empty if revocation is not checked."""
        return certificate_refs((chain,)) if chain is not None and self.rules.enabled else ()

    def evaluate_vehicle(
        self, chain: VerifiedChain, refs: Sequence[CertificateRef], state: RevocationState, now: datetime
    ) -> None:
        """Like `check_vehicle`, using already loaded revocation state."""
        if not self.rules.enabled:
            return
        if self.issuers.has_unresolved(chain):
            self._run_in_background("configured_issuers", self._learn_issuers(chain))
        try:
            return check_refs(refs, state, self.rules, now)
        except (RevokedError, Unavailable):
            pass
        # The detailed messages are built only for a vehicle that is refused or lacks evidence.
        evaluation = SoftFailRevocation(state, self.rules, grace=self.rules.grace)
        try:
            evaluation.check(chain, now)
        finally:
            if evaluation.missing:
                # Not refreshed later: a vehicle lives for decades and makes one or two requests.
                self._run_in_background("vehicle_evidence", self._fetch_for_vehicle(evaluation.missing, now))

    async def evaluate_for_vehicle(self, chains: Sequence[VerifiedChain]) -> HardFailRevocation:
        """The checker of a delivery, using the stored evidence. Fetches nothing."""
        refs = certificate_refs(chains) if self.rules.enabled else ()
        state = await self._store.read(queries.load(refs, self.rules))
        return SoftFailRevocation(state, self.rules, grace=self.rules.grace)

    def _run_in_background(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Start a task that no request waits for, unless too many are running."""
        if len(self._background) >= _MAX_BACKGROUND:
            work.close()
            return
        task = self._tasks.spawn(name, work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _learn_issuers(self, chain: VerifiedChain) -> None:
        try:
            await self.issuers.learn((chain,))
        except Unavailable as exc:
            _log.warning("configured issuer not stored", reason=str(exc))

    async def _fetch_for_vehicle(self, missing: Sequence[IssuerPair], now: datetime) -> None:
        failures = await self.fetch_missing(missing, now, watch=False, caller=_VEHICLES)
        for failure in failures.values():
            _log.warning("evidence fetch failed", reason=str(failure))

    # --- Refresh ---

    def refresh_task(self) -> PeriodicTask:
        """Background task that runs `refresh_due`. Not critical: requests notice evidence that has expired."""

        async def run() -> bool:
            return (await self.refresh_due(await self._checked_now() if self._checked_now else self._now())).more

        return PeriodicTask(
            "revocation_refresh", run, lambda: _REFRESH_INTERVAL * (0.5 + self._jitter()), first_delay=0.0
        )

    async def refresh_due(self, now: datetime) -> RefreshStats:
        """Refresh the CRLs and certificates that are due, in one round. Raises Unavailable."""
        if not self.rules.enabled:
            return RefreshStats(0, 0, False)
        return await revocation_refresh.refresh_due(self._store, self.rules, self._fetcher, now)
