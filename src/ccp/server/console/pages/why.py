"""Why: the record of a refused delivery, and a message in any form, decoded, with every check, its chains, and what the
pool would answer.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

from ccp.errors import EXIError, FieldError, NotAuthorised, NotFound
from ccp.exi.message_input import exi_bytes
from ccp.ids import EMAID, PCID, Fingerprint
from ccp.server.console.application import Console
from ccp.server.console.forms import Form
from ccp.server.console.messages import MAX_ECHOED, Echo, echo, read_message
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.rendering import EDITIONS
from ccp.server.console.sessions import ConsoleRole
from ccp.server.console.visit import Visit
from ccp.server.pool import refusal_reports
from ccp.server.pool.delivery_preview import DeliveryPreview
from ccp.server.storage.queries import refusals
from ccp.server.storage.queries.refusals import Refusal, RefusalFilter, RefusalPage

MAX_FORM_FACTOR: Final = 3
"""Base64 in a form needs up to three characters for one; a larger message than `max_body` is refused anyway."""
_RECORDS: Final = 11
_EMPTY: Final[Mapping[str, Any]] = {
    "message": Echo(), "reading": None, "problem": None, "searched": "", "not_searched": None, "wanted": None,
    "record": None, "others": (), "more": False, "found_nothing": False,
}  # fmt: skip
"""What the template shows nothing for."""


def register(console: Console, parts: ConsoleParts) -> None:
    """Register the page."""
    max_form = MAX_FORM_FACTOR * parts.config.max_body

    @console.page("/why", "Why", navigation=True)
    async def show(visit: Visit) -> Response:
        if text := visit.query("q"):
            return await _recorded(visit, text)
        message = Echo()
        if visit.is_admin and (given := visit.query("emaid")):
            message = await _stored_message(parts, given, visit.query("root"))
        return visit.render("why.html", **{**_EMPTY, "message": message})

    async def _recorded(visit: Visit, text: str) -> Response:
        try:
            wanted, page = await _records(parts, visit, text)
        except (FieldError, NotAuthorised, NotFound) as exc:
            status = 403 if isinstance(exc, NotAuthorised) else 400
            return visit.render("why.html", status, **{**_EMPTY, "searched": text, "not_searched": str(exc)})
        record = page.found[0] if page.found else None
        kept = None if record is None or record.request is None else record.request
        reading = None if kept is None else await read_message(parts, kept, visit.now, visit.ids)
        return visit.render(
            "why.html",
            200 if record is not None else 404,
            **{
                **_EMPTY,
                "searched": text,
                "wanted": wanted,
                "record": record,
                "others": page.found[1:],
                "more": page.after is not None,
                "reading": reading,
                "found_nothing": record is None,
            },
            previews=[] if record is None else await _previews(parts, record, visit),
            editions=EDITIONS,
            retention=parts.config.refusal_retention,
        )

    @console.action("/why", role=ConsoleRole.VIEWER, max_body=max_form, title="Why")
    async def explain(visit: Visit, form: Form) -> Response:
        text = form.get("message", "").strip()
        try:
            data = exi_bytes(form.need("message").encode("utf-8"))
            reading = await read_message(parts, data, visit.now, visit.ids)
        except (EXIError, FieldError) as exc:
            return visit.render("why.html", 400, **{**_EMPTY, "message": echo(text, visit.ids), "problem": str(exc)})
        return visit.render("why.html", **{**_EMPTY, "message": echo(text, visit.ids, data), "reading": reading})


async def _previews(parts: ConsoleParts, record: Refusal, visit: Visit) -> list[DeliveryPreview]:
    """What the vehicle of a record would get now, of the record's edition, or of both if that is not known."""
    if record.pcid is None:
        return []
    stored = await parts.pool.stored(None, record.pcid)
    wanted = [edition for edition in EDITIONS if edition.value == record.edition] or list(EDITIONS)
    return [await parts.pool.preview_delivery(record.pcid, edition, stored, visit.now) for edition in wanted]


async def _records(parts: ConsoleParts, visit: Visit, text: str) -> tuple[str | EMAID | PCID, RefusalPage]:
    """The records of a trace id, or the latest of a vehicle or contract. Raises FieldError, NotAuthorised, NotFound."""
    if (trace_id := refusal_reports.parse_trace_id(text)) is not None:
        return trace_id, await parts.store.read(refusals.search_page(RefusalFilter(id=trace_id), refusals.MAX_OF_TRACE))
    ids = visit.ids.candidates(text)
    if not ids:
        raise FieldError(
            "This is neither a trace id (as in the header X-Trace-Id of a response), nor an EMAID, nor a PCID."
        )
    return await refusal_reports.latest(parts.store, ids, _RECORDS)


async def _stored_message(parts: ConsoleParts, emaid: str, root: str) -> Echo:
    """A stored response in Base64, to be examined and changed; empty if there is none."""
    try:
        stored = await parts.pool.stored(EMAID.parse(emaid), None)
        wanted = Fingerprint.parse(root) if root else None
    except FieldError:
        return Echo()
    found = [each for each in stored if wanted in (None, each.root_fingerprint)]
    if not found:
        return Echo()
    text = base64.b64encode(found[0].response).decode()
    if len(text) > MAX_ECHOED:
        return Echo("", "The stored message is too long to be shown here; ccp export writes it.")
    return Echo(text)
