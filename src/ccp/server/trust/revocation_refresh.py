"""Refresh of stored revocation evidence: the CRLs and OCSP statuses that are due, host by host, with a time limit."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog

from ccp.errors import ChainError
from ccp.server.storage import Store
from ccp.server.storage.queries import anchors, unknown_values
from ccp.server.storage.queries import revocation as queries
from ccp.server.trust.revocation_client import host_label
from ccp.server.trust.revocation_fetcher import RevocationFetcher
from ccp.x509.certificates import Certificate
from ccp.x509.revocation_policy import RevocationPolicy

_log = structlog.get_logger("ccp.server.trust.revocation")

_RETRY_DELAY: Final = timedelta(minutes=2)  # After a failed refresh. The circuit breaker protects hosts that are down.
_BATCH: Final = 200  # CRLs, and certificates, per round.
_HOST_TIMEOUT: Final = 30.0  # The longest time that one CRL may take.
_CALLER: Final = "<refresh>"  # The caller in the queues of hosts.


@dataclass(frozen=True, slots=True)
class RefreshStats:
    """Result of one round. more: whether more may be due."""

    refreshed: int
    failed: int
    more: bool


async def refresh_due(
    store: Store, policy: RevocationPolicy, fetcher: RevocationFetcher, now: datetime
) -> RefreshStats:
    """Refresh the CRLs and certificates that are due, in one round.

    Failures are logged and become due again after `_RETRY_DELAY`. Raises Unavailable if the database does not answer.
    """
    by_host: dict[tuple[str, str], list[Callable[[], Awaitable[None]]]] = {}
    due_crls = await store.write(queries.due_crls(now, now + _RETRY_DELAY, _BATCH))
    due_certificates = await store.write(queries.due_certificates(now, now + _RETRY_DELAY, _BATCH))
    crls = [
        (issuer, due.url, due.names)
        for due in due_crls
        if (issuer := _load_certificate(due.issuer_certificate, "crl")) is not None
    ]
    for issuer, url, names in (*crls, *await _never_loaded(store, policy)):
        job = partial(fetcher.start_crl, issuer, url, now, names, _CALLER)
        by_host.setdefault((host_label(url), issuer.issuer_key_id), []).append(job)
    for watched in due_certificates:
        certificate = _load_certificate(watched.certificate, "watched_certificate")
        its_issuer = _load_certificate(watched.issuer_certificate, "watched_certificate")
        if certificate is None or its_issuer is None:
            continue
        job = partial(fetcher.start_certificate, certificate, its_issuer, now, True, _CALLER)
        host = host_label((*certificate.status_urls.ocsp, "")[0])
        by_host.setdefault((host, its_issuer.issuer_key_id), []).append(job)
    # One after another per host and issuer: a publisher waits behind at most one refresh at a host, and hosts that the
    # certificates of one CA name do not delay the evidence of another CA.
    outcomes = await asyncio.gather(*(_run_in_order(host, jobs) for (host, _), jobs in by_host.items()))
    refreshed, failed = sum(done for done, _ in outcomes), sum(not_done for _, not_done in outcomes)
    return RefreshStats(refreshed, failed, _BATCH in (len(due_crls), len(due_certificates)))


async def _never_loaded(store: Store, policy: RevocationPolicy) -> list[tuple[Certificate, str, frozenset[str]]]:
    """Configured CRLs of trusted CAs that are not stored yet. Loading them here spares the first publisher the wait."""
    if not policy.crl_urls:
        return []
    found = {}
    for trusted in await store.read(anchors.list_all()):
        issuer = _load_certificate(trusted.certificate, "trust_anchor")
        url = policy.configured_crl_of(issuer) if issuer is not None else None
        if issuer is not None and url and not await store.read(queries.find_crl(issuer.issuer_key_id, url)):
            found[issuer.issuer_key_id, url] = issuer, url, frozenset[str]()
    return list(found.values())


async def _run_in_order(host: str, jobs: Sequence[Callable[[], Awaitable[None]]]) -> tuple[int, int]:
    """Run the jobs of a host one after another. Returns the numbers of succeeded and failed jobs.

    It stops after `_HOST_TIMEOUT`: a slow host must not delay the next round of all others. The remaining jobs become
    due again.
    """
    done = failed = 0
    ends = asyncio.get_running_loop().time() + _HOST_TIMEOUT
    reasons: dict[str, int] = {}
    for job in jobs:
        if asyncio.get_running_loop().time() > ends:
            _log.warning("evidence refresh failed", host=host, reasons={"The host is slow.": len(jobs) - done - failed})
            break
        try:
            await job()
            done += 1
        except Exception as exc:
            failed += 1
            reasons[str(exc)] = reasons.get(str(exc), 0) + 1
    if reasons:
        _log.warning("evidence refresh failed", host=host, reasons=reasons)
    return done, failed


def _load_certificate(der: bytes, table: str) -> Certificate | None:
    """Load a stored certificate; None if this release cannot read it."""
    try:
        return Certificate.load(der)
    except ChainError as exc:
        unknown_values.warn(f"{table}.certificate", str(exc), hashlib.sha256(der).hexdigest())
        return None
