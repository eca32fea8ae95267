"""Checks of other systems: external services, peers, and partners' webhooks."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

from ccp.client import ClientError, NoResponseError, NotAuthenticatedError, NotAuthorisedError, TokenRefusedError
from ccp.errors import CCPError, ConfigurationError, Unavailable
from ccp.server.diagnosis.context import PROBE_TIMEOUT, Context, StoreClosed
from ccp.server.diagnosis.finding import CheckResult
from ccp.server.external.egress import client_tls_context
from ccp.server.external.service_check import check_service
from ccp.server.external.service_connection import ServiceConnection, check_files
from ccp.server.pool.peer_probe import probe_peer
from ccp.server.settings.services import SERVICES
from ccp.server.storage.queries import peers, webhook_health
from ccp.server.storage.queries.peers import Peer
from ccp.server.storage.queries.webhook_health import MAX_COUNTED
from ccp.x509.path_validation import TrustAnchors

_SERVICE_TIMEOUT: Final = 14.0
_MAX_PEERS: Final = 100
_AT_ONCE: Final = 16
_MAX_WEBHOOKS: Final = 100
_BACKLOG: Final = timedelta(hours=1)


async def check_services(context: Context, result: CheckResult) -> None:
    """Each external service: name, connection, TLS, token, and a first call that changes nothing."""
    services = context.settings.services
    if not services:
        result.note("no external service is configured")
        return
    anchors: TrustAnchors | None = None
    if "cps" in services:
        try:
            anchors = (await context.trust()).anchors
        except (StoreClosed, CCPError):
            result.note("the certificates of the CPS are not verified: the trust anchors cannot be read")
    await asyncio.gather(*(_check_service(context, result, prefix, anchors) for prefix in services))


async def _check_service(context: Context, result: CheckResult, prefix: str, anchors: TrustAnchors | None) -> None:
    service = context.settings.services[prefix]
    try:
        check_files({prefix: service})
        connection = ServiceConnection(context.outbound, service, SERVICES[prefix])
    except ConfigurationError as exc:
        result.add("service.unusable", str(exc), subject=prefix)
        return
    try:
        async with asyncio.timeout(_SERVICE_TIMEOUT):
            found = await check_service(
                connection,
                prefix,
                context.outbound.configured_backend,
                anchors,
                context.clock(),
                context.settings.est_labels,
            )
    except TimeoutError:
        message = f"{SERVICES[prefix]} ({service.url}): the check did not end within {_SERVICE_TIMEOUT:g} seconds."
        result.add("service.failed", message, subject=prefix)
        return
    step = found.steps[-1]
    if not found.ok:
        message = f"{found.name} ({found.url}): {step.name}: {step.detail}"
        result.add("service.failed", message, subject=prefix, action=found.advice)
        return
    result.note(f"{found.name}: {step.detail} ({found.ms:g} ms)")
    await context.note_clock(service.url, connection.tls)


async def check_peers(context: Context, result: CheckResult) -> None:
    """Each enabled peer answers, and accepts our credentials. It gets a malformed vehicle's request, and refuses it."""
    registered = [peer for peer in await (await context.store()).read(peers.list_all()) if peer.enabled]
    result.note(f"{len(registered)} peer(s) enabled")
    if len(registered) > _MAX_PEERS:
        result.note(f"{len(registered) - _MAX_PEERS} of them were not called")
    slots = asyncio.Semaphore(_AT_ONCE)

    async def check(peer: Peer) -> None:
        async with slots:
            await _check_peer(context, result, peer)

    await asyncio.gather(*map(check, registered[:_MAX_PEERS]))


async def _check_peer(context: Context, result: CheckResult, peer: Peer) -> None:
    name = f"{peer.party_id} ({peer.base_url})"
    try:
        tls = await context.blocking(client_tls_context)
        await probe_peer(peer, PROBE_TIMEOUT, tls, context.outbound.configured_backend)
    except (ConfigurationError, Unavailable) as exc:
        result.add("peer.unusable", f"{name}: {exc}", subject=peer.party_id)
        return
    except (NotAuthenticatedError, NotAuthorisedError, TokenRefusedError) as exc:
        result.add("peer.refuses-credentials", f"{name}: {exc}", subject=peer.party_id)
    except NoResponseError as exc:
        result.add("peer.unreachable", f"{name}: {exc}", subject=peer.party_id)
        return
    except ClientError as exc:
        unavailable = exc.status is not None and exc.status >= 500
        code = "peer.unreachable" if unavailable else "peer.unexpected-answer"
        result.add(code, f"{name}: {exc}", subject=peer.party_id)
    else:
        result.note(f"{name} answers and accepts our credentials")
    await context.note_clock(peer.base_url)


async def check_webhooks(context: Context, result: CheckResult) -> None:
    """What the database knows about deliveries to webhooks. No webhook is called."""
    now = context.clock()
    troubled = await (await context.store()).read(webhook_health.list_troubled(now, _MAX_WEBHOOKS))
    result.note(f"{len(troubled)} webhook(s) with events that wait or were given up")
    for each in troubled:
        name = f"{each.webhook_id} of {each.client_id} ({each.url})" if each.url else f"{each.webhook_id} (removed)"
        if each.dead:
            count = f"{each.dead}{'+' if each.dead >= MAX_COUNTED else ''}"
            result.add("webhook.dead-events", f"{name}: {count} events were given up.", subject=each.webhook_id)
        if each.last_error or each.last_status:
            reason = each.last_error or f"status {each.last_status}"
            message = f"{name}: {each.waiting} events wait; the last attempt failed: {reason.rstrip('.')}."
            result.add("webhook.fails", message, subject=each.webhook_id)
        if each.untried is not None and now - each.untried > _BACKLOG:
            message = f"{name}: an event has waited since {each.untried:%Y-%m-%d %H:%M} UTC without an attempt."
            result.add("webhook.backlog", message, subject=each.webhook_id)
