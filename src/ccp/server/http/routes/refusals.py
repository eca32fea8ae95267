"""The refused deliveries that concern a party's own ids: `GET /opnc/v1/event/refusals`.

An OEM sees the refusals of vehicles with its WMIs, an eMSP those of its contracts that were stored for a vehicle and
could not be delivered. The party that sent the request is not named.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from ccp.errors.codes import advice_on
from ccp.schemas.common import JSONObject
from ccp.schemas.timestamps import rfc3339
from ccp.server.domain.authorization import RefusalOperation
from ccp.server.domain.parties import Caller, Party, PartyRole
from ccp.server.http.refusal_parameters import (
    PAGE_SIZE,
    CodeQuery,
    CursorQuery,
    EMAIDQuery,
    LimitQuery,
    PCIDQuery,
    SinceQuery,
    UntilQuery,
    next_cursor,
    read_cursor,
)
from ccp.server.http.request_context import RequestContext, caller_dependency
from ccp.server.http.responses import error_descriptions, json_response
from ccp.server.storage import Store
from ccp.server.storage.queries import refusals
from ccp.server.storage.queries.refusals import Refusal, RefusalFilter

PATH: Final = "/opnc/v1/event/refusals"


class OwnRefusal(BaseModel):
    """A refused delivery. emaids: the caller's contracts that could not be delivered. code: the stable code. check: the
    failed check. responsible: who has to act.
    """

    traceId: str
    timestamp: datetime
    pcid: str | None
    emaids: list[str]
    xsdMsgDefNamespace: str | None
    code: str
    check: str | None
    reason: str
    responsible: str
    action: str


class OwnRefusals(BaseModel):
    """nextCursor: null on the last page."""

    refusals: list[OwnRefusal]
    nextCursor: str | None


def router(store: Store, context: RequestContext) -> APIRouter:
    """Return the route."""
    api = APIRouter(tags=["events"])
    operation = RefusalOperation.GET_REFUSALS

    @api.api_route(
        PATH,
        methods=["GET"],
        name=operation.value,
        operation_id=operation.value,
        summary=operation.value,
        response_class=Response,
        responses={**error_descriptions((400, 401, 403, 404, 500, 503)), 200: {"model": OwnRefusals}},
    )
    async def get_refusals(
        caller: Caller = caller_dependency(context, operation),
        pcid: PCIDQuery = None,
        emaid: EMAIDQuery = None,
        code: CodeQuery = None,
        since: SinceQuery = None,
        until: UntilQuery = None,
        limit: LimitQuery = PAGE_SIZE,
        cursor: CursorQuery = None,
    ) -> Response:
        """List the refused deliveries that concern the caller's own vehicles or contracts, newest first."""
        wanted = RefusalFilter(
            pcid=pcid, emaid=emaid, code=None if code is None else code.value, since=since, until=until
        )
        found, following = next_cursor(await _own(store, caller.party, wanted, limit + 1, read_cursor(cursor)), limit)
        return json_response({"refusals": [_members(each) for each in found], "nextCursor": following})

    return api


async def _own(store: Store, party: Party, wanted: RefusalFilter, limit: int, before: tuple[int, str]) -> list[Refusal]:
    """Return the newest records that a party may see."""
    found: dict[str, Refusal] = {}
    if PartyRole.OEM in party.roles and party.wmis and wanted.emaid is None:
        query = refusals.search_of_vehicles(party.wmis, party.client_id, wanted, limit, before)
        found |= {each.id: each for each in await store.read(query)}
    if PartyRole.EMSP in party.roles and party.provider_ids:
        of_contracts = refusals.search_of_contracts(party.provider_ids, wanted, limit, before)
        found |= {each.id: each for each in await store.read(of_contracts)}
    return sorted(found.values(), key=lambda each: each.cursor, reverse=True)[:limit]


def _members(refusal: Refusal) -> JSONObject:
    members: dict[str, Any] = {
        "traceId": refusal.trace_id,
        "timestamp": rfc3339(refusal.at),
        "pcid": refusal.pcid,
        "emaids": list(refusal.concerned),
        "xsdMsgDefNamespace": refusal.edition,
        "code": refusal.code,
        "check": refusal.check,
        "reason": refusal.reason,
        **advice(refusal.code),
    }
    return members


def advice(code: str) -> dict[str, str]:
    """Return who has to do what."""
    found = advice_on(code)
    return {"responsible": found.responsible.value, "action": found.action}
