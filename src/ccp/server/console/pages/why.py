"""Why: the record of a refused delivery, and a message in any form, decoded, with every check, its chains, and what the
pool would answer.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from starlette.responses import Response

from ccp.errors import EXIError, FieldError, NotAuthorised, NotFound
from ccp.exi.message_input import exi_bytes
from ccp.ids import EMAID, PCID, Fingerprint
from ccp.server.console.application import Console
from ccp.server.console.certificate_chains import Chain, load_chains
from ccp.server.console.forms import Form
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.sessions import ConsoleRole
from ccp.server.console.visit import Visit
from ccp.server.pool import refusal_reports
from ccp.server.pool.examination import Examination
from ccp.server.storage.queries import refusals
from ccp.server.storage.queries.refusals import RefusalFilter, RefusalPage
from ccp.verify.report import CheckStatus

MAX_FORM_FACTOR: Final = 3
"""Base64 in a form needs up to three characters for one; a larger message than `max_body` is refused anyway."""
_RECORDS: Final = 11
_EMPTY: Final[Mapping[str, Any]] = {
    "message": "", "reading": None, "problem": None, "searched": "", "not_searched": None, "wanted": None,
    "record": None, "others": (), "more": False, "found_nothing": False,
}  # fmt: skip
"""What the template shows nothing for."""
_MAX_SHOWN: Final = 160
"""Characters of a value in the tree; of a longer one its beginning is shown, and its length."""
_BEGINNING: Final = 48
"""Characters. That much Base64 of a certificate ends before its subject, whose id a viewer must not see."""


@dataclass(frozen=True, slots=True)
class Node:
    """An element of a decoded message. value: text of a leaf. children: of an element with content."""

    name: str
    value: str = ""
    children: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the pool makes of a message. kind: class of the style sheet. sentences: why."""

    kind: str
    verdict: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """A message as the page shows it."""

    examination: Examination
    answer: Answer
    chains: tuple[Chain, ...]
    tree: tuple[Node, ...]


def register(console: Console, parts: ConsoleParts) -> None:
    """Register the page."""
    max_form = MAX_FORM_FACTOR * parts.config.max_body

    @console.page("/why", "Why", navigation=True)
    async def show(visit: Visit) -> Response:
        if text := visit.query("q"):
            return await _recorded(visit, text)
        message = ""
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
        reading = None if kept is None else await read_message(parts, kept, visit.now)
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
            retention=parts.config.refusal_retention,
        )

    @console.action("/why", role=ConsoleRole.VIEWER, max_body=max_form, title="Why")
    async def explain(visit: Visit, form: Form) -> Response:
        message = form.get("message", "").strip()
        try:
            data = exi_bytes(form.need("message").encode("utf-8"))
            reading = await read_message(parts, data, visit.now)
        except (EXIError, FieldError) as exc:
            return visit.render("why.html", 400, **{**_EMPTY, "message": message, "problem": str(exc)})
        return visit.render("why.html", **{**_EMPTY, "message": message, "reading": reading})


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


async def read_message(parts: ConsoleParts, data: bytes, now: datetime, *, with_contracts: bool = True) -> Reading:
    """Examine a message for a page. with_contracts: whether to look up what is stored for the vehicle."""
    found = await parts.pool.examine(data, now, with_contracts=with_contracts)
    paths = [(path.name, path.certificates) for path in found.paths]
    chains = await load_chains(parts, paths, found.verified, now)
    return Reading(found, answer_to(found), chains, tree_of(found.tree or {}))


def answer_to(found: Examination) -> Answer:
    """What the pool would answer to a message, or do with it."""
    failed = [each for each in found.explanation.checks.results if each.status is CheckStatus.FAILED]
    sentences = tuple(each.reason for each in failed)
    if found.namespace is None or found.tree is None:
        return Answer("bad", "The pool cannot read the message and refuses it.", sentences)
    if failed and found.is_request:
        return Answer("bad", "The car gets no contract: the pool refuses its request.", sentences)
    if failed:
        return Answer("bad", "The pool refuses the message: it would not store it, and no car would get it.", sentences)
    if not found.is_request:
        return Answer("ok", "Every check passed: the pool would store the message and deliver it to the car.", ())
    if found.preview is None:
        return Answer("ok", "Every check passed.", ())
    if found.preview.refusal is not None:
        return Answer("warn", "The request is valid, but the car gets no contract.", found.preview.refusal.messages)
    return Answer("ok", "The request is valid, and the car gets a contract.", ())


def tree_of(value: Mapping[str, Any]) -> tuple[Node, ...]:
    """The elements of the JSON form of a message."""
    return tuple(_node(name, member) for name, member in value.items())


def _node(name: str, value: Any) -> Node:
    if isinstance(value, Mapping):
        return Node(name, children=tree_of(value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Node(name, children=tuple(_node(str(place), each) for place, each in enumerate(value, start=1)))
    text = str(value)
    if len(text) > _MAX_SHOWN:
        text = f"{text[:_BEGINNING]}… ({len(text)} characters)"
    return Node(name, text)


async def _stored_message(parts: ConsoleParts, emaid: str, root: str) -> str:
    """A stored response in Base64, to be examined and changed; empty if there is none."""
    try:
        stored = await parts.pool.stored(EMAID.parse(emaid), None)
        wanted = Fingerprint.parse(root) if root else None
    except FieldError:
        return ""
    found = [each for each in stored if wanted in (None, each.root_fingerprint)]
    return base64.b64encode(found[0].response).decode() if found else ""
