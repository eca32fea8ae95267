"""The story of a refused delivery: the record, who has to do what, and what the pool would answer now."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ccp import verify
from ccp.error_codes import BY_VALUE
from ccp.ids import PCID, Namespace
from ccp.schemas.timestamps import rfc3339
from ccp.server.domain.parties import Caller, Party, PartyRole
from ccp.server.pool.delivery import NegativeResponse
from ccp.server.pool.operations import Pool
from ccp.server.storage.queries.refusals import Refusal

_SEPARATORS: Final = re.compile(r"[-*./:_\s]")
_CALLER: Final = Caller(Party("operator", "operator", frozenset({PartyRole.CPO})))


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
    code = BY_VALUE[refusal.code]
    return {
        "trace_id": refusal.id,
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
        "responsible": code.responsible.value,
        "meaning": code.meaning,
        "action": code.action,
    }


def parse_pcid(text: str) -> PCID:
    """Read a PCID with or without separators. Raises FieldError."""
    return PCID.parse(_SEPARATORS.sub("", text))


async def answer_now(pool: Pool, message: bytes, now: datetime) -> AnswerNow:
    """What the delivery code would answer a request now, without other pools. Nothing is stored, and no event is sent.

    pool: of a command, whose events nothing sends. Raises EXIError, Unavailable.
    """
    request = verify.read_request(message, None)
    checks, warnings = await pool.explain_request(request, now)
    report = checks.to_json("CertificateInstallationReq", now, warnings)
    outcome = await pool.deliver(_CALLER, Namespace(request.namespace), request, broadcast=False, now=now)
    if isinstance(outcome, NegativeResponse):
        return AnswerNow((), outcome.reason.code.value, str(outcome.reason), report)
    return AnswerNow(tuple(str(each.contract.emaid) for each in outcome), None, None, report)
