"""The webhook of the Provisioning Certificate Pool: `POST /opnc/v1/ccp/events/pcp`.

When a provisioning certificate is deleted, renewed with a new key, or lost in a factory reset, the vehicle cannot use
its contracts any more: their keys are encrypted for the old one. The events are those of OPNC 1.0 (webhook.payload,
names emsp.… and mo.…).

The body is signed with HMAC-SHA256 under `pcp_webhook_secret`, see `ccp.server.http.inbound_events`. An event source
that the pool subscribed to has an address of its own (`ccp.server.http.routes.subscribed_events`).

The pool does not store events. Repeated, late and replayed events are harmless, because an event removes only
contracts that were published before it happened.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import SecretStr
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ccp.server.http import query_parameters
from ccp.server.http.inbound_events import (
    MAX_BODY,
    check_signature,
    describe_webhook,
    read_event,
    read_provisioning_event,
)
from ccp.server.http.middleware.tracing import trace_of
from ccp.server.http.request_context import RequestContext
from ccp.server.pool.contract_invalidation import EVENT_NAMES
from ccp.server.pool.operations import Pool

PATH: Final = "/opnc/v1/ccp/events/pcp"


def pcp_route(context: RequestContext, pool: Pool, secret: SecretStr | None) -> Route:
    """Return the route of the webhook. secret: None disables it; the path then answers 404."""
    key = secret.get_secret_value().encode() if secret is not None else b""

    async def take(request: Request) -> Response:
        trace = trace_of(request.scope)
        trace.operation = "TakeProvisioningEvent"
        if not key:
            raise HTTPException(404)
        body = await context.read_body(request.receive, request.headers, MAX_BODY)
        check_signature(key, request.headers, body)
        trace.caller, trace.authenticated = "pcp", True
        query_parameters.check(request.scope["query_string"], (), changes=True)
        now = context.clock()
        event = read_provisioning_event(read_event(body), body, now)
        if event is not None:
            trace.pcid = event.pcid
            await pool.invalidate_vehicle(event, now, trace.id)
        return Response(status_code=200)

    return Route(PATH, take, methods=["POST"])


def description() -> dict[str, Any]:
    """Return the OpenAPI description of the webhook, which is active only if `pcp_webhook_secret` is set."""
    event = {
        "type": "object",
        "required": ["eventType"],
        "properties": {
            "eventType": {
                "type": "string",
                "description": "Events of provisioning certificates have an effect: " + ", ".join(EVENT_NAMES),
            },
            "timestamp": {"type": "string", "format": "date-time"},
            "payload": {"type": "object", "required": ["pcid"], "properties": {"pcid": {"type": "string"}}},
            "xsdMsgDefNamespace": {"type": "string"},
        },
    }
    summary = "Events of the Provisioning Certificate Pool about vehicles' certificates"
    return describe_webhook("TakeProvisioningEvent", summary, event)
