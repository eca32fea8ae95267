"""Refusals: the records of refused deliveries, newest first, by code, caller, dialect, edition, vehicle and time."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlencode

from starlette.responses import Response

from ccp.errors import FieldError
from ccp.errors.codes import ErrorCode
from ccp.ids import EMAID, PCID, Namespace
from ccp.server.console.application import Console
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.rendering import EDITIONS
from ccp.server.console.visit import Visit
from ccp.server.pool import refusal_reports
from ccp.server.request_counts import Dialect
from ccp.server.storage.queries import refusals
from ccp.server.storage.queries.refusals import RefusalFilter

_ROWS: Final = 50
_CURSOR: Final = re.compile(r"([0-9]{1,18})\.([0-9a-f-]{0,36}(?:\.[0-9]{1,2})?)")
DIALECTS: Final = {Dialect.OPNC.value: "OPNC", Dialect.OPCP.value: "OPCP", Dialect.OCPP.value: "OCPP"}
_EDITIONS: Final = {namespace.value: name for namespace, name in EDITIONS.items()}


def register(console: Console, parts: ConsoleParts) -> None:
    """Register the page."""

    @console.page("/refusals", "Refusals", navigation=True)
    async def show(visit: Visit) -> Response:
        named = await _named(parts, visit)
        wanted = wanted_of(visit, named)
        page = await parts.store.read(refusals.search_page(wanted, _ROWS, _cursor(visit.query("after"))))
        query = {name: visit.query(name) for name in ("code", "caller", "dialect", "edition", "since", "until")}
        query["id"] = "" if named is None else visit.ids.handle(named)
        following = None
        if page.after is not None:
            given = {name: value for name, value in query.items() if value}
            following = urlencode({**given, "after": f"{page.after[0]}.{page.after[1]}"})
        return visit.render(
            "refusals.html",
            found=page.found,
            is_complete=page.is_complete,
            following=following,
            is_first=not visit.query("after"),
            is_filtered=any(query.values()),
            named=named,
            query=query,
            codes=sorted(code.value for code in ErrorCode),
            dialects=DIALECTS,
            editions=_EDITIONS,
            searched=refusals.SEARCHED,
            retention=parts.config.refusal_retention,
        )


def wanted_of(visit: Visit, named: EMAID | PCID | None) -> RefusalFilter:
    """The filter of a query string. Raises FieldError."""
    return RefusalFilter(
        pcid=named if isinstance(named, PCID) else None,
        emaid=named if isinstance(named, EMAID) else None,
        client_id=visit.query("caller").replace("\0", "") or None,
        code=_one_of(visit, "code", [code.value for code in ErrorCode]),
        since=visit.time("since"),
        until=visit.time("until"),
        dialect=_one_of(visit, "dialect", list(DIALECTS)),
        edition=_one_of(visit, "edition", [edition.value for edition in Namespace]),
    )


async def _named(parts: ConsoleParts, visit: Visit) -> EMAID | PCID | None:
    """The vehicle or contract of the query. Raises FieldError, NotFound, NotAuthorised."""
    text = visit.query("id")
    if not text:
        return None
    ids = visit.ids.candidates(text)
    if not ids:
        raise FieldError("id : must be an EMAID or a PCID")
    return ids[0] if len(ids) == 1 else (await refusal_reports.latest(parts.store, ids, 1))[0]


def _one_of(visit: Visit, name: str, values: list[str]) -> str | None:
    value = visit.query(name)
    if value and value not in values:
        raise FieldError(f"{name} : has no such value")
    return value or None


def _cursor(text: str) -> tuple[int, str]:
    if not text:
        return refusals.FIRST
    found = _CURSOR.fullmatch(text)
    if found is None:
        raise FieldError("after : is no place in the list")
    return int(found[1]), found[2]
