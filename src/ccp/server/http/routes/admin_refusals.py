"""The admin API under `/admin/v1/refusals` and `/admin/v1/statistics`: refused deliveries, and counts of requests."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from ccp.errors import FieldError
from ccp.schemas.common import JSONObject, encode_base64
from ccp.schemas.timestamps import rfc3339
from ccp.server.domain.authorization import AdminOperation
from ccp.server.domain.parties import Caller
from ccp.server.http.admin_operations import describe
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
from ccp.server.http.responses import json_response
from ccp.server.pool.refusal_reports import shown
from ccp.server.storage import Store
from ccp.server.storage.queries import refusals, request_counts
from ccp.server.storage.queries.refusals import Refusal, RefusalFilter

_LONGEST: Final = timedelta(days=366)


class RefusalShown(BaseModel):
    """A refused delivery. client_id: the caller. emaid: the contract that the request names. emaids: contracts that
    could not be delivered. digest: SHA-256 of the vehicle's message. check: the failed check. request: the message in
    Base64, if it is kept.
    """

    trace_id: str
    at: datetime
    client_id: str
    operation: str
    dialect: str
    status: int
    edition: str | None
    pcid: str | None
    emaid: str | None
    emaids: list[str]
    digest: str | None
    code: str
    check: str | None
    reason: str
    responsible: str
    meaning: str
    action: str
    request: str | None


class RefusalPage(BaseModel):
    """next_cursor: the cursor of the next page, null on the last one."""

    refusals: list[RefusalShown]
    next_cursor: str | None


class Period(StrEnum):
    """The length of the periods that requests are summed up by, in UTC."""

    HOUR = "hour"
    DAY = "day"


class RequestCount(BaseModel):
    """Requests of a period. code: null for requests that were not refused."""

    begin: datetime
    dialect: str
    operation: str | None
    code: str | None
    requests: int


class Statistics(BaseModel):
    """Periods without a request are left out."""

    since: datetime
    until: datetime
    per: Period
    counts: list[RequestCount]


def router(store: Store, context: RequestContext) -> APIRouter:
    """Return the routes."""
    api = APIRouter(tags=["admin"])

    @describe(api, "GET", "/refusals", AdminOperation.LIST_REFUSALS, RefusalPage)
    async def list_refusals(
        caller: Caller = caller_dependency(context, AdminOperation.LIST_REFUSALS),
        trace_id: Annotated[str | None, Query(max_length=36, description="Trace id of the response.")] = None,
        pcid: PCIDQuery = None,
        emaid: EMAIDQuery = None,
        client_id: Annotated[str | None, Query(max_length=255, description="Client id of the caller.")] = None,
        code: CodeQuery = None,
        since: SinceQuery = None,
        until: UntilQuery = None,
        limit: LimitQuery = PAGE_SIZE,
        cursor: CursorQuery = None,
    ) -> Response:
        """List refused deliveries, newest first."""
        wanted = RefusalFilter(
            trace_id, pcid, emaid, client_id, None if code is None else code.value, since=since, until=until
        )
        found, following = next_cursor(await store.read(refusals.search(wanted, limit + 1, read_cursor(cursor))), limit)
        return json_response({"refusals": [_members(each) for each in found], "next_cursor": following})

    @describe(api, "GET", "/statistics", AdminOperation.GET_STATISTICS, Statistics)
    async def get_statistics(
        caller: Caller = caller_dependency(context, AdminOperation.GET_STATISTICS),
        since: SinceQuery = None,
        until: UntilQuery = None,
        per: Annotated[Period, Query(description="Length of the periods.")] = Period.HOUR,
    ) -> Response:
        """Count requests by dialect, operation and code of the refusal. The last 24 hours by default."""
        end = until or context.clock()
        begin = since or end - timedelta(hours=23)
        if not timedelta(0) <= end - begin <= _LONGEST:
            raise FieldError("since : must be before until, by 366 days at most")
        period = timedelta(hours=1) if per is Period.HOUR else timedelta(days=1)
        found = await store.read(request_counts.read(begin, end, period))
        counts = [
            {
                "begin": rfc3339(each.begin),
                "dialect": each.dialect,
                "operation": each.operation or None,
                "code": each.code or None,
                "requests": each.number,
            }
            for each in found
        ]
        return json_response({"since": rfc3339(begin), "until": rfc3339(end), "per": per.value, "counts": counts})

    return api


def _members(refusal: Refusal) -> JSONObject:
    request: Any = None if refusal.request is None else encode_base64(refusal.request)
    return {**shown(refusal), "request": request}
