"""Other systems: peers, and the external services that the settings name."""

from __future__ import annotations

from starlette.responses import Response

from ccp.server.console.application import Console
from ccp.server.console.forms import Form
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.visit import Visit
from ccp.server.pool.peer_registry import PeerRegistry
from ccp.server.runtime.redacted_urls import hide_credentials
from ccp.server.settings.services import SERVICES
from ccp.server.storage.queries import subscriptions


def register(console: Console, parts: ConsoleParts) -> None:
    """Register the page and its actions."""
    registry = PeerRegistry(parts.store)

    @console.page("/partners", "Peers and services", navigation=True)
    async def show(visit: Visit) -> Response:
        services = [
            (prefix, SERVICES[prefix], hide_credentials(service.url), service.authentication)
            for prefix, service in parts.config.services.items()
        ]
        sources = {each.source: each for each in await parts.store.read(subscriptions.list_all())}
        return visit.render("partners.html", peers=await registry.list_all(), services=services, sources=sources)

    @console.action("/peers/{party_id}/disable")
    async def disable(visit: Visit, form: Form) -> Response:
        await registry.disable(visit.path_part("party_id"), visit.actor, visit.now)
        return visit.redirect("/partners", notice="peer-disabled")

    @console.action("/peers/{party_id}/enable")
    async def enable(visit: Visit, form: Form) -> Response:
        await registry.enable(visit.path_part("party_id"), visit.actor, visit.now)
        return visit.redirect("/partners", notice="peer-enabled")
