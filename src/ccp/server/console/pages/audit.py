"""Audit trail: the rows of a period, by actor, action and outcome; download of a page as JSON lines.

Rows are found by the index of their time. There is no index of ids (docs/decisions/0022), so a search by id is for
`ccp audit search`, and for the pages of contracts and vehicles.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import orjson
from starlette.responses import Response

from ccp.errors import FieldError
from ccp.server.console.application import Console
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.rendering import HEADERS
from ccp.server.console.sessions import ConsoleRole
from ccp.server.console.visit import Visit
from ccp.server.storage.queries import audit
from ccp.server.storage.queries.audit import Action, AuditRow, Filter

_ROWS: Final = 100
_EXPORTED: Final = 5000
PERIODS: Final = {"1": "24 hours", "7": "7 days", "31": "31 days"}


def register(console: Console, parts: ConsoleParts) -> None:
    """Register the page and the download."""

    async def search(visit: Visit, limit: int) -> tuple[Filter, list[AuditRow]]:
        wanted = wanted_of(visit)
        return wanted, await parts.store.read(audit.search(wanted, limit))

    @console.page("/audit", "Audit trail", navigation=True)
    async def show(visit: Visit) -> Response:
        wanted, found = await search(visit, _ROWS + 1)
        return visit.render(
            "audit.html",
            rows=found[:_ROWS],
            more=len(found) > _ROWS,
            last=found[_ROWS - 1].when if len(found) > _ROWS else None,
            wanted=wanted,
            period=visit.query("days", "1"),
            periods=PERIODS,
            actions=[action.value for action in Action],
            query={name: visit.query(name) for name in ("actor", "action", "outcome")},
            exported=_EXPORTED,
        )

    @console.page("/audit/export", "Audit trail", role=ConsoleRole.ADMIN)
    async def export(visit: Visit) -> Response:
        _, found = await search(visit, _EXPORTED)
        body = b"".join(orjson.dumps(row.members()) + b"\n" for row in found)
        name = f"audit-{visit.now:%Y%m%dT%H%M%SZ}.jsonl"
        headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
        return Response(body, 200, headers, media_type="application/jsonl")


def wanted_of(visit: Visit) -> Filter:
    """The filter of a query string. Raises FieldError."""
    days = visit.query("days", "1")
    if days not in PERIODS:
        raise FieldError(f"days : must be one of {', '.join(PERIODS)}")
    until = None
    if text := visit.query("until"):
        try:
            until = datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError) as exc:
            raise FieldError("until : must be a time as in ISO 8601") from exc
    try:
        since = (until or visit.now) - timedelta(days=int(days))
    except OverflowError as exc:
        raise FieldError("until : must be a time as in ISO 8601") from exc
    return Filter(
        since, until, visit.query("actor") or None, visit.query("action") or None, visit.query("outcome") or None
    )
