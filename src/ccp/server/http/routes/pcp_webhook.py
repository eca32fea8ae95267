"""The webhook of the Provisioning Certificate Pool: `POST /opnc/v1/ccp/events/pcp`.

When a provisioning certificate is deleted, renewed with a new key, or lost in a factory reset, the vehicle cannot use
its contracts any more: their keys are encrypted for the old one. The events are those of OPNC 1.0 (webhook.payload,
names emsp.… and mo.…).

The body is signed with HMAC-SHA256 under `pcp_webhook_secret`. The published description puts the hexadecimal digest
into `X-Operator-Signature` for one kind of event and into `payload-signature` for the other. Implementations prefix it
with `sha256=` or use `X-Hubject-Signature`. The pool accepts each of these forms.

The pool does not store events. Repeated, late and replayed events are harmless, because an event removes only
contracts that were published before it happened.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import structlog
from pydantic import BaseModel, BeforeValidator, ConfigDict, SecretStr
from pydantic_core import PydanticCustomError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ccp.errors import FieldError, NotAuthorised
from ccp.schemas.common import NamespaceField, PCIDField
from ccp.schemas.json_bodies import read_body
from ccp.server.http import query_parameters
from ccp.server.http.middleware.tracing import trace_of
from ccp.server.http.request_context import RequestContext
from ccp.server.http.responses import json_content
from ccp.server.pool.contract_invalidation import EVENT_NAMES, ProvisioningEvent, parse_event_name
from ccp.server.pool.operations import Pool

_log = structlog.get_logger("ccp.pcp")

PATH: Final = "/opnc/v1/ccp/events/pcp"
SIGNATURE_HEADERS: Final = ("X-Operator-Signature", "payload-signature", "X-Hubject-Signature")
_MAX_LOGGED: Final = 100  # Characters of an unknown event name.

# An event with a future time would remove contracts that are published until then, and again at each replay.
_CLOCK_TOLERANCE: Final = timedelta(minutes=5)


def pcp_route(context: RequestContext, pool: Pool, secret: SecretStr | None) -> Route:
    """Return the route of the webhook. secret: None disables it; the path then answers 404."""
    key = secret.get_secret_value().encode() if secret is not None else b""

    async def take(request: Request) -> Response:
        trace = trace_of(request.scope)
        trace.operation = "TakeProvisioningEvent"
        if not key:
            raise HTTPException(404)
        body = await context.read_body(request.receive, request.headers)
        check_signature(key, request.headers, body)
        trace.caller, trace.authenticated = "pcp", True
        query_parameters.check(request.scope["query_string"], (), changes=True)
        now = context.clock()
        event = read_event(body, now)
        if event is not None:
            trace.pcid = event.pcid
            await pool.invalidate_vehicle(event, now, trace.id)
        return Response(status_code=200)

    return Route(PATH, take, methods=["POST"])


def check_signature(key: bytes, headers: Headers, body: bytes) -> None:
    """Check the signature of the body in constant time. Raises NotAuthorised."""
    given = next((value for name in SIGNATURE_HEADERS if (value := headers.get(name))), "")
    expected = hmac.new(key, body, hashlib.sha256).hexdigest()
    digest = given.strip().lower().removeprefix("sha256=")
    if not hmac.compare_digest(digest.encode("utf-8", "replace"), expected.encode()):
        raise NotAuthorised("The signature of the event is missing or wrong.")


class _Vehicle(BaseModel):
    model_config = ConfigDict(extra="ignore")

    pcid: PCIDField


def _latest_instant(value: object) -> datetime:
    """Return the last instant that a timestamp can mean: without a fraction, the end of the second.

    Source: RFC 3339.
    """
    try:
        if not isinstance(value, str):
            raise TypeError
        moment = datetime.fromisoformat(value)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        return moment if "." in value else moment.replace(microsecond=999_999)
    except (ValueError, TypeError, OverflowError) as exc:
        raise PydanticCustomError("field", "timestamp : must be a time as in RFC 3339") from exc


class _Event(BaseModel):
    model_config = ConfigDict(extra="ignore")

    eventType: str
    timestamp: Annotated[datetime, BeforeValidator(_latest_instant)]
    payload: _Vehicle
    xsdMsgDefNamespace: NamespaceField | None = None


class _AnyEvent(BaseModel):
    model_config = ConfigDict(extra="ignore")

    eventType: str


def read_event(body: bytes, now: datetime) -> ProvisioningEvent | None:
    """Return the event in a body; None if it is not about vehicle certificates. Raises FieldError."""
    name = read_body(_AnyEvent, body).eventType
    try:
        change = parse_event_name(name)
    except FieldError:
        _log.warning("provisioning event unknown", event_type=name[:_MAX_LOGGED])
        raise
    if change is None:
        return None
    event = read_body(_Event, body)
    if event.timestamp > now + _CLOCK_TOLERANCE:
        raise FieldError("timestamp : must not be in the future")
    return ProvisioningEvent(change, event.payload.pcid, event.timestamp, event.xsdMsgDefNamespace)


def description() -> dict[str, Any]:
    """Return the OpenAPI description of the webhook, which is active only if `pcp_webhook_secret` is set."""
    error = json_content("Error")
    signature = {
        "in": "header",
        "required": False,
        "schema": {"type": "string", "pattern": "^(sha256=)?[0-9A-Fa-f]{64}$"},
        "description": "HMAC-SHA256 of the body, hexadecimal; in one of these headers.",
    }
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
    failures = {
        code: {"description": "Error", "content": error} for code in ("400", "403", "404", "413", "415", "500", "503")
    }
    return {
        "operationId": "TakeProvisioningEvent",
        "summary": "Events of the Provisioning Certificate Pool about vehicles' certificates",
        "parameters": [{"name": name, **signature} for name in SIGNATURE_HEADERS],
        "requestBody": {"required": True, "content": {"application/json": {"schema": event}}},
        "responses": {"200": {"description": "Success"}, **failures},
        "security": [],
    }
