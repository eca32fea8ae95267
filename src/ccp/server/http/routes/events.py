"""The event service under `/opnc/v1/event/endpoints`: a partner's webhooks and the deliveries to them.

The operations are those of OPNC, plus the list of a webhook's deliveries. `ccp.server.events.webhooks` has the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeAlias

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from ccp.schemas.common import JSONObject, RoutingHeaders
from ccp.schemas.events import Endpoint, EndpointDeliveries, PostEndpointReq, PutEndpointUpdateReq
from ccp.schemas.timestamps import rfc3339
from ccp.server.domain.authorization import EventOperation
from ccp.server.domain.parties import Caller, PartyRole
from ccp.server.events.webhooks import Webhooks, WebhookSpec, WebhookWithOwner
from ccp.server.http.request_context import Handler, RequestContext
from ccp.server.http.responses import body_description, error_descriptions, json_response
from ccp.server.storage.queries.contracts import instant, microseconds
from ccp.server.storage.queries.deliveries import Delivery, DeliveryCursor, DeliveryState

BASE: Final = "/opnc/v1/event/endpoints"
_PAGE_SIZE: Final = 100  # Deliveries.
_MAX_PAGE_SIZE: Final = 1000  # A delivery has some 400 bytes.

BODIES: Final = (PostEndpointReq, PutEndpointUpdateReq)
"""Models to add to the OpenAPI description, because the routes read their bodies themselves."""


IdPath: TypeAlias = Annotated[str, Path(description="Endpoint id.")]
StateQuery: TypeAlias = Annotated[
    Literal["waiting", "delivered", "dead"] | None,
    Query(description="State of the deliveries to list; all without."),
]
LimitQuery: TypeAlias = Annotated[int, Query(ge=1, le=_MAX_PAGE_SIZE, description="Deliveries on the page, at most.")]
CursorQuery: TypeAlias = Annotated[
    str | None,
    Query(
        description="nextCursor of the previous page; without it, the first page.",
        pattern=r"^[0-9]{1,16}\.[0-9a-f-]{36}$",
    ),
]


def router(webhooks: Webhooks, context: RequestContext) -> APIRouter:
    """Return the routes of the event service."""
    api = APIRouter(tags=["events"])

    def caller_of(operation: EventOperation) -> Any:
        async def authenticated(request: Request) -> Caller:
            return await context.authenticate(request.scope, request.headers, operation)

        async def caller(
            routing: Annotated[RoutingHeaders, Header()], known: Caller = Depends(authenticated)
        ) -> Caller:
            context.resolve_pool_id(known, routing)
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
        responses = error_descriptions(failures)
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
            openapi_extra=body_description(body) if body else None,
        )

    @add("POST", "", EventOperation.POST_ENDPOINT, Endpoint, PostEndpointReq, 201)
    async def post_endpoint(request: Request, caller: Caller = caller_of(EventOperation.POST_ENDPOINT)) -> Response:
        """Subscribe to events of the caller's own ids. The response contains the secret that signs the events."""
        wanted = _wanted(await context.read_json(request, caller, PostEndpointReq))
        owned = await webhooks.add(caller, wanted, context.clock())
        headers = {"Location": f"{BASE}/{owned.webhook.id}"}
        return json_response(_endpoint(owned, secret=True), 201, headers)

    @add("GET", "", EventOperation.GET_ENDPOINTS, list[Endpoint])
    async def get_endpoints(caller: Caller = caller_of(EventOperation.GET_ENDPOINTS)) -> Response:
        """List the caller's webhooks, oldest first, without their secrets."""
        return json_response([_endpoint(owned) for owned in await webhooks.list_all(caller)])

    @add("GET", "/{id}", EventOperation.GET_ENDPOINT, Endpoint)
    async def get_endpoint_by_id(
        id: IdPath,
        caller: Caller = caller_of(EventOperation.GET_ENDPOINT),
    ) -> Response:
        """Return a webhook with its secret."""
        return json_response(_endpoint(await webhooks.get(caller, id), secret=True))

    @add("PUT", "/{id}", EventOperation.UPDATE_ENDPOINT, Endpoint, PutEndpointUpdateReq)
    async def update_endpoint_by_id(
        request: Request,
        id: IdPath,
        caller: Caller = caller_of(EventOperation.UPDATE_ENDPOINT),
    ) -> Response:
        """Change the given members of a webhook. A disabled one gets no new events; its deliveries stay waiting."""
        wanted = _wanted(await context.read_json(request, caller, PutEndpointUpdateReq))
        return json_response(_endpoint(await webhooks.edit(caller, id, wanted, context.clock())))

    @add("DELETE", "/{id}", EventOperation.DELETE_ENDPOINT)
    async def delete_endpoint_by_id(
        id: IdPath,
        caller: Caller = caller_of(EventOperation.DELETE_ENDPOINT),
    ) -> Response:
        """Remove a webhook and its waiting deliveries."""
        await webhooks.remove(caller, id, context.clock())
        return Response(status_code=200)

    @add("GET", "/{id}/deliveries", EventOperation.GET_DELIVERIES, EndpointDeliveries)
    async def get_endpoint_deliveries(
        id: IdPath,
        caller: Caller = caller_of(EventOperation.GET_DELIVERIES),
        state: StateQuery = None,
        limit: LimitQuery = _PAGE_SIZE,
        cursor: CursorQuery = None,
    ) -> Response:
        """List the deliveries of a webhook, newest first."""
        before = None if cursor is None else _read_cursor(cursor)
        found, more = await webhooks.deliveries(caller, id, state and DeliveryState(state), before, limit)
        next_cursor = _cursor(found[-1].cursor) if more else None
        return json_response({"deliveries": [_delivery(delivery) for delivery in found], "nextCursor": next_cursor})

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


def _read_cursor(cursor: str) -> DeliveryCursor:
    at, _, event_id = cursor.partition(".")
    return instant(int(at)), event_id


def _delivery(delivery: Delivery) -> JSONObject:
    waits = delivery.state is DeliveryState.WAITING
    return {
        "eventId": delivery.event_id,
        "eventType": delivery.kind,
        "pcid": delivery.pcid or None,
        "emaid": delivery.emaid or None,
        "xsdMsgDefNamespace": delivery.namespace or None,
        "timestamp": rfc3339(delivery.created_at, "milliseconds"),
        "state": delivery.state.value,
        "attempts": delivery.attempts,
        "nextAttempt": rfc3339(delivery.due_at, "milliseconds") if waits else None,
        "lastStatus": delivery.last_status,
        "lastError": delivery.last_error,
        "finishedAt": None if delivery.finished_at is None else rfc3339(delivery.finished_at, "milliseconds"),
    }
