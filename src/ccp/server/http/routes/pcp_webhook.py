"""The webhook that a Provisioning Certificate Pool posts to: `POST /opnc/v1/ccp/events/pcp`.

A provisioning certificate that was deleted, renewed with a new key, or lost in a factory reset makes a vehicle's
contracts worthless: their keys were encrypted for the old one. The events are those of OPNC 1.0
(webhook.payload, emsp.… and mo.… names). The body is signed with HMAC-SHA256 under `pcp_webhook_secret`; the published
description puts the bare hexadecimal digest into `X-Operator-Signature` for one kind of event and into
`payload-signature` for the other, implementations write `sha256=` before it or use `X-Hubject-Signature`; each of these
is read.

Nothing is remembered of events, and still one that comes twice, late or again after years does no harm: it removes only
what was published before it happened.
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
from ccp.server.http.routes.opnc import BASE, Edge
from ccp.server.pool.contract_invalidation import EVENT_NAMES, ProvisioningEvent, parse_event_name
from ccp.server.pool.operations import Pool

_log = structlog.get_logger("ccp.pcp")

PATH: Final = f"{BASE}/events/pcp"
SIGNATURE_HEADERS: Final = ("X-Operator-Signature", "payload-signature", "X-Hubject-Signature")
_SHOWN: Final = 100  # Characters of an unknown name in the log.

# An event that claims to be from later would remove what is published until then, again whenever it is replayed.
_CLOCKS_DIFFER: Final = timedelta(minutes=5)


def pcp_route(edge: Edge, pool: Pool, secret: SecretStr | None) -> Route:
    """secret: None takes no events at all; the path then answers as if there were nothing."""
    key = secret.get_secret_value().encode() if secret is not None else b""

    async def take(request: Request) -> Response:
        trace = trace_of(request.scope)
        trace.operation = "TakeProvisioningEvent"
        if not key:
            raise HTTPException(404)
        body = await edge.body(request.receive, request.headers)
        check_signature(key, request.headers, body)
        trace.caller, trace.authenticated = "pcp", True
        query_parameters.check(request.scope["query_string"], (), changes=True)
        at = edge.clock()
        event = read_event(body, at)
        if event is not None:
            trace.pcid = event.pcid
            await pool.invalidate_vehicle(event, at, trace.id)
        return Response(status_code=200)

    return Route(PATH, take, methods=["POST"])


def check_signature(key: bytes, headers: Headers, body: bytes) -> None:
    """Raises NotAuthorised, in time that does not tell how wrong the signature is."""
    given = next((value for name in SIGNATURE_HEADERS if (value := headers.get(name))), "")
    expected = hmac.new(key, body, hashlib.sha256).hexdigest()
    said = given.strip().lower().removeprefix("sha256=")
    if not hmac.compare_digest(said.encode("utf-8", "replace"), expected.encode()):
        raise NotAuthorised("The signature of the event is missing or wrong.")


class _Vehicle(BaseModel):
    model_config = ConfigDict(extra="ignore")

    pcid: PCIDField


def _instant(value: object) -> datetime:
    """The last microsecond that a time may stand for: one without a fraction is the whole second. Source: RFC 3339."""
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
    timestamp: Annotated[datetime, BeforeValidator(_instant)]
    payload: _Vehicle
    xsdMsgDefNamespace: NamespaceField | None = None


class _AnyEvent(BaseModel):
    model_config = ConfigDict(extra="ignore")

    eventType: str


def read_event(body: bytes, at: datetime) -> ProvisioningEvent | None:
    """The event of a body; None if it is one that does not concern vehicles' certificates. Raises FieldError."""
    name = read_body(_AnyEvent, body).eventType
    try:
        change = parse_event_name(name)
    except FieldError:
        _log.warning("provisioning event unknown", event_type=name[:_SHOWN])
        raise
    if change is None:
        return None
    event = read_body(_Event, body)
    if event.timestamp > at + _CLOCKS_DIFFER:
        raise FieldError("timestamp : must not be in the future")
    return ProvisioningEvent(change, event.payload.pcid, event.timestamp, event.xsdMsgDefNamespace)


def description() -> dict[str, Any]:
    """The operation as the OpenAPI description has it; the path is answered only where `pcp_webhook_secret` is set."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
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
                "description": "Those of provisioning certificates have an effect: " + ", ".join(EVENT_NAMES),
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
