"""The event service: a partner's webhooks and the deliveries to them.

OPNC and OPCP have the same five operations on the same webhooks, under other paths. Both have three more here: the list
of a webhook's deliveries, the rotation of its secret, and the ping. `ccp.server.events.webhooks` has the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeAlias

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from ccp.schemas.common import JSONObject, RoutingHeaders
from ccp.schemas.events import (
    Endpoint,
    EndpointDeliveries,
    EndpointSecret,
    PingOutcome,
    PostEndpointReq,
    PutEndpointUpdateReq,
    SecretRotation,
)
from ccp.schemas.timestamps import rfc3339
from ccp.server.domain.authorization import EventOperation
from ccp.server.domain.parties import Caller, PartyRole
from ccp.server.domain.subscriptions import SignatureFormat
from ccp.server.events.webhooks import Webhooks, WebhookSpec, WebhookWithOwner
from ccp.server.http.request_context import Handler, RequestContext
from ccp.server.http.responses import body_description, error_descriptions, json_response
from ccp.server.storage.queries.contracts import instant, microseconds
from ccp.server.storage.queries.deliveries import Delivery, DeliveryCursor, DeliveryState


@dataclass(frozen=True, slots=True)
class EventDialect:
    """How a dialect writes the event service.

    base: path of the list. prefix: of operation ids. routing: whether requests may have the routing headers.
    """

    base: str
    tag: str
    prefix: str
    routing: bool
    roles: Mapping[PartyRole, str]


_ROLES: Final = {PartyRole.OEM: "OEM", PartyRole.CPO: "CPO", PartyRole.CPS: "CPS", PartyRole.CCP: "CCP"}
OPNC: Final = EventDialect("/opnc/v1/event/endpoints", "events", "", True, {**_ROLES, PartyRole.EMSP: "eMSP"})
OPCP: Final = EventDialect("/v1/webhook/endpoints", "OPCP", "OPCP", False, {**_ROLES, PartyRole.EMSP: "MO"})

_PAGE_SIZE: Final = 100  # Deliveries.
_MAX_PAGE_SIZE: Final = 1000  # A delivery has some 400 bytes.

BODIES: Final = (PostEndpointReq, PutEndpointUpdateReq, SecretRotation)
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


def router(webhooks: Webhooks, context: RequestContext, dialect: EventDialect) -> APIRouter:
    """Return the routes of the event service in a dialect."""
    api = APIRouter(tags=[dialect.tag])

    def caller_of(operation: EventOperation) -> Any:
        async def authenticated(request: Request) -> Caller:
            return await context.authenticate(request.scope, request.headers, operation)

        async def caller(
            routing: Annotated[RoutingHeaders, Header()], known: Caller = Depends(authenticated)
        ) -> Caller:
            context.resolve_pool_id(known, routing)
            return known

        return Depends(caller if dialect.routing else authenticated)

    def shown(owned: WebhookWithOwner, *, secret: bool = False) -> JSONObject:
        return _endpoint(owned, dialect.roles[owned.role], context.clock(), secret=secret)

    def add(
        method: str,
        path: str,
        operation: EventOperation,
        answer: Any = None,
        body: type[BaseModel] | None = None,
        status: int = 200,
        more_failures: tuple[int, ...] = (),
    ) -> Callable[[Handler], Handler]:
        failures = (400, 401, 403, 404, 413, 415, 500, 503) if body else (400, 401, 403, 404, 500, 503)
        responses = error_descriptions((*failures, *more_failures))
        if answer is not None:
            responses[status] = {"model": answer}
        return api.api_route(
            dialect.base + path,
            methods=[method],
            name=f"{dialect.prefix} {operation.value}".strip(),
            operation_id=dialect.prefix + operation.value,
            summary=operation.value,
            response_class=Response,
            status_code=status,
            responses=responses,
            openapi_extra=body_description(body, required=body is not SecretRotation) if body else None,
        )

    @add("POST", "", EventOperation.POST_ENDPOINT, Endpoint, PostEndpointReq, 201)
    async def post_endpoint(request: Request, caller: Caller = caller_of(EventOperation.POST_ENDPOINT)) -> Response:
        """Subscribe to events of the caller's own ids. The response contains the secret that signs the events."""
        wanted = _wanted(await context.read_json(request, caller, PostEndpointReq))
        owned = await webhooks.add(caller, wanted, context.clock())
        headers = {"Location": f"{dialect.base}/{owned.webhook.id}"}
        return json_response(shown(owned, secret=True), 201, headers)

    @add("GET", "", EventOperation.GET_ENDPOINTS, list[Endpoint])
    async def get_endpoints(caller: Caller = caller_of(EventOperation.GET_ENDPOINTS)) -> Response:
        """List the caller's webhooks, oldest first, without their secrets."""
        return json_response([shown(owned) for owned in await webhooks.list_all(caller)])

    @add("GET", "/{id}", EventOperation.GET_ENDPOINT, Endpoint)
    async def get_endpoint_by_id(
        id: IdPath,
        caller: Caller = caller_of(EventOperation.GET_ENDPOINT),
    ) -> Response:
        """Return a webhook without its secret."""
        return json_response(shown(await webhooks.get(caller, id)))

    @add("PUT", "/{id}", EventOperation.UPDATE_ENDPOINT, Endpoint, PutEndpointUpdateReq)
    async def update_endpoint_by_id(
        request: Request,
        id: IdPath,
        caller: Caller = caller_of(EventOperation.UPDATE_ENDPOINT),
    ) -> Response:
        """Change the given members of a webhook. A disabled one gets no new events; its deliveries stay waiting."""
        wanted = _wanted(await context.read_json(request, caller, PutEndpointUpdateReq))
        return json_response(shown(await webhooks.edit(caller, id, wanted, context.clock())))

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

    @add("POST", "/{id}/secret", EventOperation.ROTATE_SECRET, EndpointSecret, SecretRotation)
    async def rotate_endpoint_secret(
        request: Request,
        id: IdPath,
        caller: Caller = caller_of(EventOperation.ROTATE_SECRET),
    ) -> Response:
        """Replace the secret of a webhook; the previous one stays valid for a time. Returns the new one."""
        wanted = await context.read_json(request, caller, SecretRotation, b"{}")
        webhook = (await webhooks.rotate_secret(caller, id, wanted.overlap, context.clock())).webhook
        until = [rfc3339(each.valid_until) for each in webhook.previous_secrets]
        return json_response({"id": webhook.id, "secret": webhook.secret, "previousValidUntil": until})

    @add("POST", "/{id}/ping", EventOperation.PING, PingOutcome, more_failures=(429,))
    async def ping_endpoint(id: IdPath, caller: Caller = caller_of(EventOperation.PING)) -> Response:
        """Send a test event to a webhook now, and show what came back."""
        return json_response((await webhooks.ping(caller, id, context.clock())).members())

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
        signature_format=None if body.signatureFormat is None else SignatureFormat(body.signatureFormat),
    )


def _endpoint(owned: WebhookWithOwner, role: str, now: datetime, *, secret: bool) -> JSONObject:
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
        "userRole": role,
        "userName": party.name,
        "signatureFormat": webhook.signature_format.value,
        "previousSecretsValidUntil": [rfc3339(each.valid_until) for each in webhook.live_previous_secrets(now)],
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
