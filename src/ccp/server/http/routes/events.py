"""The event service under `/opnc/v1/event/endpoints`: a partner's webhooks, and what became of what they were told.

The published operations, and one of ours: the deliveries of a webhook. The rules are `ccp.server.events.webhooks`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeAlias

import orjson
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from ccp.schemas.common import Error, JSONObject, RoutingHeaders
from ccp.schemas.events import Endpoint, EndpointDeliveries, PostEndpointReq, PutEndpointUpdateReq
from ccp.schemas.json_bodies import Body, read_body
from ccp.schemas.timestamps import rfc3339
from ccp.server.domain.authorization import EventOperation
from ccp.server.domain.parties import Caller, PartyRole
from ccp.server.events.webhooks import Webhooks, WebhookSpec, WebhookWithOwner
from ccp.server.http.routes.opnc import Edge, Handler
from ccp.server.storage.queries.contracts import instant, microseconds
from ccp.server.storage.queries.deliveries import Delivery, DeliveryCursor, DeliveryState

BASE: Final = "/opnc/v1/event/endpoints"
_PAGE: Final = 100  # Deliveries on a page if nothing is said.
_LARGEST_PAGE: Final = 1000  # A delivery is some 400 octets.

BODIES: Final = (PostEndpointReq, PutEndpointUpdateReq)
"""What the OpenAPI description has to be told of, since bodies are read outside of the framework's machinery."""

IdPath: TypeAlias = Annotated[str, Path(description="Endpoint id.")]
StateQuery: TypeAlias = Annotated[
    Literal["waiting", "delivered", "dead"] | None,
    Query(description="Only those that wait, were taken, or were given up; all without."),
]
LimitQuery: TypeAlias = Annotated[int, Query(ge=1, le=_LARGEST_PAGE, description="Most deliveries on the page.")]
CursorQuery: TypeAlias = Annotated[
    str | None,
    Query(description="nextCursor of the page before; the newest without.", pattern=r"^[0-9]{1,16}\.[0-9a-f-]{36}$"),
]


def router(webhooks: Webhooks, edge: Edge) -> APIRouter:
    api = APIRouter(tags=["events"])

    def calling(operation: EventOperation) -> Any:
        async def authenticated(request: Request) -> Caller:
            return await edge.caller(request.scope, request.headers, operation)

        async def caller(
            routing: Annotated[RoutingHeaders, Header()], known: Caller = Depends(authenticated)
        ) -> Caller:
            edge.route(known, routing)
            return known

        return Depends(caller)

    def add(
        method: str,
        path: str,
        operation: EventOperation,
        answer: Any = None,
        body: type[BaseModel] | None = None,
        status: int = 200,
    ) -> Callable[[Handler], Handler]:
        failures = (400, 401, 403, 404, 413, 415, 500, 503) if body else (400, 401, 403, 404, 500, 503)
        responses: dict[int | str, dict[str, Any]] = {code: {"model": Error} for code in failures}
        if answer is not None:
            responses[status] = {"model": answer}
        return api.api_route(
            BASE + path,
            methods=[method],
            name=operation.value,
            operation_id=operation.value,
            summary=operation.value,
            response_class=Response,
            status_code=status,
            responses=responses,
            openapi_extra={"requestBody": _described(body)} if body else None,
        )

    @add("POST", "", EventOperation.POST_ENDPOINT, Endpoint, PostEndpointReq, 201)
    async def post_endpoint(request: Request, caller: Caller = calling(EventOperation.POST_ENDPOINT)) -> Response:
        """Subscribe to events of one's own ids. The answer has the secret that they are signed with."""
        wanted = _wanted(await read(request, caller, PostEndpointReq))
        owned = await webhooks.add(caller, wanted, edge.clock())
        headers = {"Location": f"{BASE}/{owned.webhook.id}"}
        return _json(_endpoint(owned, secret=True), 201, headers)

    @add("GET", "", EventOperation.GET_ENDPOINTS, list[Endpoint])
    async def get_endpoints(caller: Caller = calling(EventOperation.GET_ENDPOINTS)) -> Response:
        """One's own webhooks, the oldest first, without their secrets."""
        return _json([_endpoint(owned) for owned in await webhooks.list_all(caller)])

    @add("GET", "/{id}", EventOperation.GET_ENDPOINT, Endpoint)
    async def get_endpoint_by_id(
        id: IdPath,
        caller: Caller = calling(EventOperation.GET_ENDPOINT),
    ) -> Response:
        """A webhook, with its secret."""
        return _json(_endpoint(await webhooks.get(caller, id), secret=True))

    @add("PUT", "/{id}", EventOperation.UPDATE_ENDPOINT, Endpoint, PutEndpointUpdateReq)
    async def update_endpoint_by_id(
        request: Request,
        id: IdPath,
        caller: Caller = calling(EventOperation.UPDATE_ENDPOINT),
    ) -> Response:
        """Change what is given of a webhook. Disabled it is told nothing new, and what waits goes on waiting."""
        wanted = _wanted(await read(request, caller, PutEndpointUpdateReq))
        return _json(_endpoint(await webhooks.edit(caller, id, wanted, edge.clock())))

    @add("DELETE", "/{id}", EventOperation.DELETE_ENDPOINT)
    async def delete_endpoint_by_id(
        id: IdPath,
        caller: Caller = calling(EventOperation.DELETE_ENDPOINT),
    ) -> Response:
        """Remove a webhook, and what still waits for it."""
        await webhooks.remove(caller, id, edge.clock())
        return Response(status_code=200)

    @add("GET", "/{id}/deliveries", EventOperation.GET_DELIVERIES, EndpointDeliveries)
    async def get_endpoint_deliveries(
        id: IdPath,
        caller: Caller = calling(EventOperation.GET_DELIVERIES),
        state: StateQuery = None,
        limit: LimitQuery = _PAGE,
        cursor: CursorQuery = None,
    ) -> Response:
        """What became of the events for a webhook, the newest first."""
        before = None if cursor is None else _mark(cursor)
        found, more = await webhooks.deliveries(caller, id, state and DeliveryState(state), before, limit)
        next_cursor = _cursor(found[-1].cursor) if more else None
        return _json({"deliveries": [_delivery(each) for each in found], "nextCursor": next_cursor})

    async def read(request: Request, caller: Caller, model: type[Body]) -> Body:
        octets = await edge.body(request.receive, request.headers)
        await edge.again(request.scope, request.headers, caller)
        return read_body(model, octets)

    return api


def _wanted(body: PostEndpointReq | PutEndpointUpdateReq) -> WebhookSpec:
    return WebhookSpec(
        url=body.url,
        events=body.subscribed,
        wmis=None if body.own_wmis is None else tuple(body.own_wmis),
        provider_ids=None if body.providerIds is None else tuple(body.providerIds),
        description=body.description,
        metadata=body.metadata,
        enabled=None if body.status is None else body.status == "enabled",
    )


def _endpoint(owned: WebhookWithOwner, *, secret: bool = False) -> JSONObject:
    webhook, party = owned.webhook, owned.party
    members = {
        "id": webhook.id,
        "apiVersion": webhook.api_version,
        "created": int(webhook.created_at.timestamp()),
        "description": webhook.description,
        "enabledEvents": webhook.events,
        "events": webhook.events,
        "metadata": webhook.metadata,
        "status": "enabled" if webhook.enabled else "disabled",
        "url": webhook.url,
        "userRole": "eMSP" if owned.role is PartyRole.EMSP else "OEM",
        "userName": party.name,
    }
    if secret:
        members["secret"] = webhook.secret
    if PartyRole.OEM in party.roles:
        members["wmis"] = owned.wmis
    if PartyRole.EMSP in party.roles:
        members["providerIds"] = owned.provider_ids
    return members


def _cursor(place: DeliveryCursor) -> str:
    return f"{microseconds(place[0])}.{place[1]}"


def _mark(cursor: str) -> DeliveryCursor:
    at, _, event_id = cursor.partition(".")
    return instant(int(at)), event_id


def _delivery(delivery: Delivery) -> JSONObject:
    waits = delivery.state is DeliveryState.WAITING
    return {
        "eventId": delivery.event_id,
        "eventType": delivery.kind,
        "pcid": delivery.pcid,
        "emaid": delivery.emaid,
        "xsdMsgDefNamespace": delivery.namespace,
        "timestamp": rfc3339(delivery.created_at, "milliseconds"),
        "state": delivery.state.value,
        "attempts": delivery.attempts,
        "nextAttempt": rfc3339(delivery.due_at, "milliseconds") if waits else None,
        "lastStatus": delivery.last_status,
        "lastError": delivery.last_error,
        "finishedAt": None if delivery.finished_at is None else rfc3339(delivery.finished_at, "milliseconds"),
    }


def _described(body: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _json(members: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(members), status, headers, media_type="application/json")
