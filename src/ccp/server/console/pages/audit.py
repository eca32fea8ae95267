"""Audit trail: the rows of a period, by actor, action, outcome and id; download as JSON lines; verification.

Rows are found by the index of their time; there is no other one (docs/decisions/0022). So a search with conditions
examines a limited number of rows, says how far it came, and goes on with a link. A link has the begin of the period and
the place of the last row (time, shard, number), so that its pages show each row of the period once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson
from starlette.responses import Response

from ccp.errors import FieldError
from ccp.server.console.application import Console
from ccp.server.console.audit_subjects import details_of
from ccp.server.console.audit_verification import AuditVerification
from ccp.server.console.forms import Form
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.rendering import HEADERS
from ccp.server.console.sessions import ConsoleRole
from ccp.server.console.visit import Visit
from ccp.server.storage.queries import audit
from ccp.server.storage.queries.audit import MAX_LANE, Action, AuditRow, Filter, Place
from ccp.server.storage.queries.contracts import instant

ROWS: Final = 50
_EXPORTED: Final = 5000
EXAMINED: Final = 50_000
"""Rows that a search with conditions reads: some 20 milliseconds."""
_PLACE: Final = re.compile(r"([0-9]{1,17})\.(-1|[0-9]{1,5})\.([0-9]{1,18})")
_MICROSECOND: Final = timedelta(microseconds=1)
_END: Final = datetime(9999, 12, 31, tzinfo=UTC)
PERIODS: Final = {"1": "24 hours", "7": "7 days", "31": "31 days"}


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of a search. since: begin of the period. examined: since when its rows were; None for the whole period."""

    rows: list[AuditRow]
    since: datetime
    examined: datetime | None


def register(console: Console, parts: ConsoleParts) -> None:
    """Register the pages, the download and the verification."""
    verification = AuditVerification(parts.store, parts.background, parts.context.clock)

    async def search(visit: Visit, limit: int) -> Found:
        since, wanted = wanted_of(visit)
        before, floor = _place(visit.query("before")), None
        if wanted.actor or wanted.action or wanted.outcome or wanted.ids:
            until = wanted.until or _END
            if before is not None:
                until = min(until, instant(before[0]) + _MICROSECOND)
            floor = await parts.store.read(audit.time_of_row(since, until, EXAMINED - 1))
            wanted = replace(wanted, since=floor or since)
        return Found(await parts.store.read(audit.search(wanted, limit, before)), since, floor)

    @console.page("/audit", "Audit trail", navigation=True)
    async def show(visit: Visit) -> Response:
        result = await search(visit, ROWS + 1)
        more = len(result.rows) > ROWS
        shown = result.rows[:ROWS]
        query = {name: visit.query(name) for name in ("actor", "action", "outcome", "id", "until")}
        following = None
        if more:
            following = shown[-1].place
        elif result.examined is not None:
            following = audit.before_time(result.examined)
        return visit.render(
            "audit.html",
            rows=[(row, details_of(row.subject, visit.ids)) for row in shown],
            unexamined=None if more else result.examined,
            since=result.since.isoformat(),
            before=visit.query("before"),
            following=following and "{}.{}.{}".format(*following),
            examined=EXAMINED,
            period=visit.query("days", "1"),
            periods=PERIODS,
            actions=[action.value for action in Action],
            query={name: value for name, value in query.items() if value},
            exported=_EXPORTED,
            progress=await verification.progress(visit.now),
        )

    @console.action("/audit/verify")
    async def verify(visit: Visit, form: Form) -> Response:
        await verification.start(visit.actor, visit.now)
        return visit.redirect("/audit", notice="verification-started")

    @console.page("/audit/export", "Audit trail", role=ConsoleRole.ADMIN)
    async def export(visit: Visit) -> Response:
        found = await search(visit, _EXPORTED)
        body = b"".join(orjson.dumps(row.members()) + b"\n" for row in found.rows)
        name = f"audit-{visit.now:%Y%m%dT%H%M%SZ}.jsonl"
        headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
        return Response(body, 200, headers, media_type="application/jsonl")


def wanted_of(visit: Visit) -> tuple[datetime, Filter]:
    """The begin of the period, and the filter, of a query string.

    Raises FieldError, NotFound, and NotAuthorised for a viewer's id in full.
    """
    days = visit.query("days", "1")
    if days not in PERIODS:
        raise FieldError(f"days : must be one of {', '.join(PERIODS)}")
    until, since = visit.time("until"), visit.time("since")
    if since is None:
        try:
            since = (until or visit.now) - timedelta(days=int(days))
        except OverflowError as exc:
            raise FieldError("until : must be later") from exc
    ids: tuple[str, ...] = ()
    if text := visit.query("id"):
        candidates = visit.ids.candidates(text)
        if not candidates:
            raise FieldError("id : must be an EMAID or a PCID")
        ids = (str(candidates[0]),)
    return since, Filter(since, until, _text(visit, "actor"), _text(visit, "action"), _text(visit, "outcome"), ids)


def _place(text: str) -> Place | None:
    """Raises FieldError."""
    if not text:
        return None
    found = _PLACE.fullmatch(text)
    if found is None or int(found[2]) > MAX_LANE:
        raise FieldError("before : is no place in the trail")
    return int(found[1]), int(found[2]), int(found[3])


def _text(visit: Visit, name: str) -> str | None:
    return visit.query(name).replace("\0", "") or None
