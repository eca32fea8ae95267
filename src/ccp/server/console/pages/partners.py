"""Other systems: peers, and the external services that the settings name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final, TypeAlias
from urllib.parse import quote

from starlette.responses import Response

from ccp.errors import CCPError, NotFound, TooManyRequests
from ccp.server.console import systems
from ccp.server.console.application import Console
from ccp.server.console.forms import Form
from ccp.server.console.paging import portion
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.visit import Visit
from ccp.server.external.egress import client_tls_context
from ccp.server.external.service_check import check_service
from ccp.server.pool.peer_probe import probe_peer
from ccp.server.pool.peer_registry import PeerRegistry
from ccp.server.runtime.redacted_urls import hide_credentials
from ccp.server.settings.services import SERVICES
from ccp.server.storage.queries import audit
from ccp.server.storage.queries.audit import Action, Entry
from ccp.server.storage.queries.peers import Peer

_PEERS: Final = 25
_CALL: Final = 5.0
"""Seconds for the call of a peer."""
_TIMEOUT: Final = 15.0
"""Seconds for one test. A worker runs one at a time."""

_Test: TypeAlias = Callable[[], Awaitable[str | None]]
"""Returns why the other system does not work; None if it does."""


def register(console: Console, parts: ConsoleParts) -> None:
    """Register the page and its actions."""
    registry = PeerRegistry(parts.store)

    @console.page("/partners", "Peers and services", navigation=True)
    async def show(visit: Visit) -> Response:
        return visit.render(
            "partners.html",
            peers=portion(visit, await systems.load_peers(parts, visit.now), _PEERS),
            services=await systems.load_services(parts, visit.now),
            settings=parts.config.services,
            hide_credentials=hide_credentials,
        )

    @console.page("/peers/{party_id}", "Peer")
    async def show_peer(visit: Visit) -> Response:
        row = await systems.load_peer(parts, visit.path_part("party_id"), visit.now)
        title = f"Peer {visit.ids.text(row.peer.party_id)}"
        return visit.render("peer.html", title=title, row=row, peer=row.peer)

    running = False

    async def run(visit: Visit, name: str, action: Action, about: str, test: _Test) -> Response:
        nonlocal running
        if running:
            raise TooManyRequests("A test is under way. It takes some seconds.", retry_after=5)
        running = True
        try:
            async with asyncio.timeout(_TIMEOUT):
                problem = await test()
        except TimeoutError:
            problem = f"The test did not end within {_TIMEOUT:g} seconds."
        finally:
            running = False
        subject = {about: name, "works": problem is None}
        entry = Entry(visit.now, visit.actor.name, action, subject, trace_id=visit.trace_id)
        await parts.store.write(audit.record(entry))
        back = "/partners" if about == "service" else f"/peers/{quote(name, safe='')}"
        return visit.render("partner_test.html", name=name, problem=problem, back=back)

    @console.action("/peers/{party_id}/test", title="Test")
    async def test_peer(visit: Visit, form: Form) -> Response:
        peer = await registry.get(visit.path_part("party_id"))
        return await run(visit, peer.party_id, Action.PEER_TESTED, "peer", lambda: _probe(peer))

    async def _probe(peer: Peer) -> str | None:
        try:
            await probe_peer(peer, _CALL, client_tls_context(), parts.outbound.configured_backend)
        except CCPError as exc:
            return str(exc)
        return None

    @console.action("/services/{prefix}/test", title="Test")
    async def test_service(visit: Visit, form: Form) -> Response:
        prefix = visit.path_part("prefix")
        if prefix not in parts.external.connections:
            raise NotFound("No such service is configured.")
        return await run(visit, SERVICES[prefix], Action.SERVICE_TESTED, "service", lambda: _check(prefix, visit.now))

    async def _check(prefix: str, now: datetime) -> str | None:
        connection, backend = parts.external.connections[prefix], parts.outbound.configured_backend
        found = await check_service(connection, prefix, backend, parts.trust.anchors, now, parts.config.est_labels)
        return None if found.ok else " ".join(filter(None, (found.steps[-1].detail, found.advice)))

    @console.action("/peers/{party_id}/disable")
    async def disable(visit: Visit, form: Form) -> Response:
        peer = await registry.disable(visit.path_part("party_id"), visit.actor, visit.now)
        return visit.redirect(f"/peers/{quote(peer.party_id, safe='')}", notice="peer-disabled")

    @console.action("/peers/{party_id}/enable")
    async def enable(visit: Visit, form: Form) -> Response:
        peer = await registry.enable(visit.path_part("party_id"), visit.actor, visit.now)
        return visit.redirect(f"/peers/{quote(peer.party_id, safe='')}", notice="peer-enabled")
