"""Events of the systems that this pool has subscribed to: `POST /opnc/v1/ccp/events/{id}`.

What an event does depends on the system that sends it, so that no system can do more harm than its role allows:

| event | from | effect |
|---|---|---|
| `root.cert.…` | any | the pool synchronises with its Root Certificate Pool soon, once for many events |
| `….prov.cert.…` | Provisioning Certificate Pool | contracts of the vehicle are removed, as by `pcp_webhook` |
| `….contract.…` | another pool | what that pool answered for the vehicle is forgotten |

Any other event is acknowledged without effect, because senders repeat what is refused; an unknown name of an event of
provisioning certificates is refused. The pool stores no events: each only makes it read a state that it would read
anyway, or removes contracts that were published before it happened. So repeated, late and replayed ones are harmless.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ccp.errors import FieldError
from ccp.ids import PCID
from ccp.server.http import query_parameters
from ccp.server.http.inbound_events import (
    MAX_BODY,
    check_age,
    check_signature,
    describe_webhook,
    read_event,
    read_pcid,
    read_provisioning_event,
)
from ccp.server.http.middleware.tracing import trace_of
from ccp.server.http.request_context import RequestContext
from ccp.server.metrics.last_calls import EVENTS, LastCalls
from ccp.server.pool.event_sources import EventSources
from ccp.server.pool.operations import Pool
from ccp.server.pool.subscriptions import CALLBACK_BASE

PATH: Final = f"{CALLBACK_BASE}/{{id}}"
_ROOT_EVENT: Final = "root.cert."
_CONTRACT_EVENT: Final = re.compile(r"(?:oem|emsp|mo)\.contract\..*")
_PCP: Final = "pcp"


def route(
    context: RequestContext,
    pool: Pool,
    sources: EventSources,
    forget_negative: Callable[[str, PCID], None],
    synchronise_roots: Callable[[], None],
    calls: LastCalls,
) -> Route:
    """Return the route. forget_negative: called with a peer and a vehicle. calls: gets each event that was taken."""

    async def take(request: Request) -> Response:
        trace = trace_of(request.scope)
        trace.operation = "TakeEvent"
        source = sources.find(request.path_params["id"])
        if source is None or source.secret is None:
            raise HTTPException(404)
        body = await context.read_body(request.receive, request.headers, MAX_BODY)
        check_signature(source.secret.encode(), request.headers, body)
        trace.caller, trace.authenticated = source.source, True
        query_parameters.check(request.scope["query_string"], (), changes=True)
        now = context.clock()
        check_age(body, now)
        event = read_event(body)
        provisioning = read_provisioning_event(event, body, now)
        if provisioning is not None:
            if source.source != _PCP:
                raise FieldError("eventType : events of provisioning certificates come from their pool only")
            trace.pcid = provisioning.pcid
            await pool.invalidate_vehicle(provisioning, now, trace.id)
        elif event.eventType.startswith(_ROOT_EVENT):
            synchronise_roots()
        elif source.peer is not None and _CONTRACT_EVENT.fullmatch(event.eventType):
            trace.pcid = read_pcid(body)
            forget_negative(source.peer, trace.pcid)
        calls.record(EVENTS, source.source, "ok", 0.0)
        return Response(status_code=200)

    return Route(PATH, take, methods=["POST"])


def description() -> dict[str, Any]:
    """Return the OpenAPI description of the address, which the pool gives to systems that it subscribes to."""
    event = {
        "type": "object",
        "required": ["eventType", "timestamp"],
        "properties": {
            "eventType": {"type": "string"},
            "timestamp": {"type": "string", "format": "date-time"},
            "payload": {"type": "object"},
        },
    }
    identifier = {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "Id of the subscription.",
        "schema": {"type": "string"},
    }
    summary = "Events of a system that this pool has subscribed to"
    return describe_webhook("TakeEvent", summary, event, [identifier])
