"""The story of a refused delivery: the record, who has to do what, and what the pool would answer now."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ccp.errors import CCPError, FieldError
from ccp.errors.codes import advice_on
from ccp.ids import EMAID, PCID
from ccp.schemas.timestamps import rfc3339
from ccp.server.pool.operations import Pool
from ccp.server.storage import Store
from ccp.server.storage.queries import refusals
from ccp.server.storage.queries.refusals import Refusal, RefusalFilter, RefusalPage
from ccp.verify.report import CheckStatus

_SEPARATORS: Final = re.compile(r"[-*./:_\s]")
_TRACE_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class AnswerNow:
    """What a kept request would get now, from this pool alone.

    emaids: of the delivered contracts; empty with a refusal, which has the code and the reason. checks: of the request,
    each with its verdict.
    """

    emaids: tuple[str, ...]
    code: str | None
    reason: str | None
    checks: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The answer as a JSON object."""
        return {"emaids": list(self.emaids), "code": self.code, "reason": self.reason, "checks": self.checks}


def shown(refusal: Refusal) -> dict[str, Any]:
    """A record as a JSON object, without the request, with who has to do what."""
    advice = advice_on(refusal.code)
    return {
        "trace_id": refusal.trace_id,
        "at": rfc3339(refusal.at),
        "client_id": refusal.client_id,
        "operation": refusal.operation,
        "dialect": refusal.dialect,
        "status": refusal.status,
        "edition": refusal.edition,
        "pcid": refusal.pcid,
        "emaid": refusal.emaid,
        "emaids": list(refusal.concerned),
        "digest": refusal.digest,
        "code": refusal.code,
        "check": refusal.check,
        "reason": refusal.reason,
        "responsible": advice.responsible.value,
        "meaning": advice.meaning,
        "action": advice.action,
    }


def parse_pcid(text: str) -> PCID:
    """Read a PCID with or without separators. Raises FieldError."""
    return PCID.parse(_SEPARATORS.sub("", text))


def parse_trace_id(text: str) -> str | None:
    """The trace id that a text is, in any case of its letters; None if it is none."""
    text = text.strip().lower()
    return text if _TRACE_ID.fullmatch(text) else None


def parse_ids(text: str) -> list[EMAID | PCID]:
    """The ids that a text may be, in any notation. Seventeen letters and digits may be of either kind."""
    found: list[EMAID | PCID] = []
    for parse in (EMAID.parse, parse_pcid):
        try:
            found.append(parse("".join(text.split())))
        except FieldError:
            continue
    return found


async def latest(store: Store, ids: Sequence[EMAID | PCID], limit: int) -> tuple[EMAID | PCID, RefusalPage]:
    """The latest records of a vehicle or contract. ids: at least one; the first one with records counts."""
    for each in ids:
        page = await store.read(refusals.search_page(filter_of(each), limit))
        if page.found:
            return each, page
    return ids[0], RefusalPage([], None, True)


def filter_of(named: EMAID | PCID) -> RefusalFilter:
    """The records of a vehicle or a contract."""
    return RefusalFilter(pcid=named) if isinstance(named, PCID) else RefusalFilter(emaid=named)


async def answer_now(pool: Pool, message: bytes, now: datetime) -> AnswerNow:
    """What the pool would answer a kept request now, without other pools. Nothing is stored, and no event is caused.

    It is the examination that the page *Why* of the console shows. Raises Unavailable.
    """
    found = await pool.examine(message, now)
    explanation = found.explanation
    report = explanation.checks.to_json("CertificateInstallationReq", now, explanation.warnings)
    refusal: CCPError | None = explanation.checks.first_failure
    if refusal is None and found.preview is not None:
        refusal = found.preview.refusal
        emaids = tuple(str(each.emaid) for each in found.preview.delivered)
        if refusal is None:
            return AnswerNow(emaids, None, None, report)
    failed = [each.reason for each in explanation.checks.results if each.status is CheckStatus.FAILED]
    reason = " ".join(dict.fromkeys(failed)) or str(refusal or "")
    return AnswerNow((), None if refusal is None else refusal.code.value, reason, report)
