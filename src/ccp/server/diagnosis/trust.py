"""Checks of trusted certificates, and of the hosts from which revocation evidence comes."""

from __future__ import annotations

import asyncio
from typing import Final

from ccp.errors import ChainError
from ccp.server.diagnosis.context import Context
from ccp.server.diagnosis.finding import CheckResult
from ccp.server.external.egress import RefusedAddressError
from ccp.server.external.outbound import OutboundError
from ccp.server.external.resolver import ResolutionError
from ccp.server.settings import RevocationMode, VehicleTrust
from ccp.server.storage.queries import anchors, status_addresses
from ccp.server.trust.anchors import Expiry, expiry_warning
from ccp.x509.certificate_checks import check_ca, check_profile, validate_root
from ccp.x509.certificates import Certificate
from ccp.x509.http_urls import is_http_url, origin_of
from ccp.x509.profiles import AnchorRole, Profile

MAX_ISSUERS: Final = 100
_MAX_URLS: Final = 500
MAX_HOSTS: Final = 40
_AT_ONCE: Final = 16
_EXPIRY: Final = {
    Expiry.EXPIRED: "anchors.expired",
    Expiry.NOT_YET: "anchors.not-yet-valid",
    Expiry.SOON: "anchors.expires-soon",
}


async def check_anchors(context: Context, result: CheckResult) -> None:
    """There are anchors for each role, valid and usable."""
    store = await context.store()
    entries = await store.read(anchors.list_all())
    now, usable = context.clock(), set()
    seen: set[str] = set()
    for entry in entries:
        name = f"{entry.label} ({entry.role}, {entry.fingerprint})"
        try:
            certificate = Certificate.load(entry.certificate)
            _check_usable(certificate, is_root=entry.is_root)
        except ChainError as exc:
            result.add("anchors.unusable", f"{name}: {exc}", subject=entry.fingerprint)
            continue
        state = Expiry.of(certificate, now)
        if entry.is_root and state in (Expiry.VALID, Expiry.SOON):
            usable.add(entry.role)
        if state in _EXPIRY and entry.fingerprint not in seen:
            result.add(_EXPIRY[state], f"{expiry_warning(certificate, now)} ({name})", subject=entry.fingerprint)
        seen.add(entry.fingerprint)
    counts = {role: sum(entry.role == role.value and entry.is_root for entry in entries) for role in AnchorRole}
    roots = ", ".join(f"{count} {role.value}" for role, count in counts.items())
    result.note(f"roots: {roots}; intermediates: {sum(not entry.is_root for entry in entries)}")
    if not entries:
        result.add("anchors.none", "There are no trusted certificates.")
        return
    if AnchorRole.V2G.value not in usable:
        result.add("anchors.no-v2g", "There is no V2G root that is valid now.")
    if AnchorRole.OEM.value not in usable and context.settings.vehicle_trust is VehicleTrust.CHAIN:
        result.add("anchors.no-oem", "There is no OEM root that is valid now, and vehicle_trust is chain.")


def _check_usable(certificate: Certificate, *, is_root: bool) -> None:
    """Raises ChainError for a certificate that no valid chain can contain."""
    if is_root:
        validate_root(certificate)
    else:
        check_profile(certificate, Profile.ISO20)  # Its algorithms include those of ISO 15118-2.
        check_ca(certificate, ())


async def check_revocation_hosts(context: Context, result: CheckResult) -> None:
    """The OCSP responders and CRL servers of stored certificates can be reached. One request to each host."""
    settings = context.settings
    if settings.revocation is RevocationMode.OFF:
        result.skip("not checked: revocation is off")
        return
    origins = {_origin(url): True for url in settings.crl_urls.values() if is_http_url(url)}
    for url in await _stored_urls(context, result):
        if is_http_url(url):
            origins.setdefault(_origin(url), False)
    chosen = sorted(origins)[:MAX_HOSTS]
    result.note(f"{len(origins)} host(s) of OCSP responders and CRLs")
    if len(origins) > MAX_HOSTS:
        result.note(f"{len(origins) - MAX_HOSTS} of them were not called")
    slots = asyncio.Semaphore(_AT_ONCE)

    async def call(origin: str) -> None:
        async with slots:
            await _call(context, result, origin, configured=origins[origin])

    await asyncio.gather(*map(call, chosen))


async def _stored_urls(context: Context, result: CheckResult) -> list[str]:
    """Addresses from the tables (see `status_addresses`) and from the trusted certificates."""
    store = await context.store()
    urls = await store.read(status_addresses.list_crl_urls(_MAX_URLS))
    samples = await store.read(status_addresses.list_watched_samples(MAX_ISSUERS))
    if len(samples) == MAX_ISSUERS:
        result.note(f"there are more than {MAX_ISSUERS} issuers; the others were not looked at")
    trusted = [entry.certificate for entry in await store.read(anchors.list_all()) if not entry.is_root]
    for der in (*samples, *trusted):
        try:
            found = Certificate.load(der).status_urls
        except ChainError:
            continue  # For an anchor, the other check says so.
        urls += [*found.ocsp, *found.crl]
    return urls


def _origin(url: str) -> str:
    scheme, host, port = origin_of(url)
    name = f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}:{port}"


async def _call(context: Context, result: CheckResult, origin: str, *, configured: bool) -> None:
    try:
        response = await context.probe(f"{origin}/", configured=configured)
    except OutboundError as exc:
        cause = exc.__cause__
        refused = isinstance(cause, RefusedAddressError) or (isinstance(cause, ResolutionError) and cause.missing)
        code = "revocation.host-refused" if refused else "revocation.host-unreachable"
        result.add(code, f"{origin}: {cause if refused else exc}", subject=origin)
        return
    result.note(f"{origin} answers ({response.status})")
