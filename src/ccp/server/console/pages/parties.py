"""Parties: who may call the pool, with which secrets, and which webhooks they have."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from ccp.errors import FieldError
from ccp.server.access.party_registry import SecretToRevoke
from ccp.server.console.application import Console
from ccp.server.console.forms import Form
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.visit import Visit
from ccp.server.storage.queries import webhooks

PAGE: Final = 50
OVERLAPS: Final = {"0": "ends at once", "86400": "stays valid for 1 day", "604800": "stays valid for 7 days"}
"""Seconds for which the previous secret stays valid, by the value of the form."""


def register(console: Console, parts: ConsoleParts) -> None:
    """Register the pages and their actions."""
    registry = parts.registry

    @console.page("/parties", "Parties", navigation=True)
    async def show_all(visit: Visit) -> Response:
        found, more = await registry.list_page(visit.query("after"), PAGE)
        return visit.render("parties.html", parties=found, following=found[-1].client_id if more else None)

    @console.page("/parties/{client_id}", "Party")
    async def show(visit: Visit) -> Response:
        view = await registry.show(visit.path_part("client_id"), visit.now)
        return visit.render(
            "party.html",
            title=visit.ids.text(view.party.name, 160),
            party=view.party,
            secrets=view.secrets,
            webhooks=await parts.store.read(webhooks.list_by_party(view.party.client_id)),
            overlaps=OVERLAPS,
        )

    @console.action("/parties/{client_id}/rotate-secret", title="New secret")
    async def rotate_secret(visit: Visit, form: Form) -> Response:
        overlap = form.need("overlap")
        if overlap not in OVERLAPS:
            raise FieldError("overlap : must be one of the choices")
        end = SecretToRevoke(form["end"]) if form.get("end") in set(SecretToRevoke) else None
        client_id = visit.path_part("client_id")
        secret, view = await registry.rotate_secret(client_id, visit.actor, visit.now, int(overlap), end)
        return visit.render(
            "secret.html",
            secret=secret,
            about=f"client secret of {visit.ids.text(view.party.name)}",
            fate=f"The previous secret {OVERLAPS[overlap]}.",
            back=f"/parties/{client_id}",
        )

    @console.action("/parties/{client_id}/disable")
    async def disable(visit: Visit, form: Form) -> Response:
        view = await registry.disable(visit.path_part("client_id"), visit.actor, visit.now)
        return visit.redirect(f"/parties/{view.party.client_id}", notice="party-disabled")

    @console.action("/parties/{client_id}/enable")
    async def enable(visit: Visit, form: Form) -> Response:
        view = await registry.enable(visit.path_part("client_id"), visit.actor, visit.now)
        return visit.redirect(f"/parties/{view.party.client_id}", notice="party-enabled")
