"""Events that other systems send to this pool: signatures, age, and what they say.

The body is signed with HMAC-SHA256. The published description puts the hexadecimal digest into `X-Operator-Signature`
for one kind of event and into `payload-signature` for the other. Implementations prefix it with `sha256=`, or use
`X-Hubject-Signature`; while a secret is being replaced, pools list the signatures of both secrets in
`X-Operator-Signatures`. The pool accepts each of these forms.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import structlog
from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError
from starlette.datastructures import Headers

from ccp.errors import FieldError, NotAuthorised
from ccp.errors.codes import ErrorCode
from ccp.ids import PCID
from ccp.schemas.common import NamespaceField, PCIDField
from ccp.schemas.json_bodies import read_body
from ccp.server.http.responses import json_content
from ccp.server.pool.contract_invalidation import ProvisioningEvent, parse_event_name

_log = structlog.get_logger("ccp.pcp")

SIGNATURE_HEADERS: Final = (
    "X-Operator-Signature", "payload-signature", "X-Hubject-Signature", "X-Operator-Signatures",
)  # fmt: skip
MAX_BODY: Final = 65_536
"""Bytes. The largest published event contains one contract certificate."""
MAX_AGE: Final = timedelta(days=8)
"""Age beyond which an event is refused as a replay. Senders repeat deliveries for hours, this pool for three days by
default; an operator may replay given-up events within a week.
"""

_MAX_LOGGED: Final = 100  # Characters of an unknown event name.
_MAX_SIGNATURES: Final = 16

# An event with a future time would remove contracts that are published until then, and again at each replay.
_CLOCK_TOLERANCE: Final = timedelta(minutes=5)


def check_signature(key: bytes, headers: Headers, body: bytes) -> None:
    """Check that one of the signatures in the headers is that of the body. Raises NotAuthorised."""
    expected = hmac.new(key, body, hashlib.sha256).hexdigest().encode()
    given = [text for name in SIGNATURE_HEADERS for value in headers.getlist(name) for text in re.split("[, ]+", value)]
    matches = [
        hmac.compare_digest(text.strip().lower().removeprefix("sha256=").encode("utf-8", "replace"), expected)
        for text in given[:_MAX_SIGNATURES]
    ]
    if not any(matches):
        raise NotAuthorised("The signature of the event is missing or wrong.", code=ErrorCode.EVENT_SIGNATURE_INVALID)


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


class InboundEvent(BaseModel):
    """The name of an event, which decides what else is read."""

    model_config = ConfigDict(extra="ignore")

    eventType: str


class _Dated(BaseModel):
    model_config = ConfigDict(extra="ignore")

    timestamp: Annotated[datetime, BeforeValidator(_latest_instant)]


class _OfVehicle(BaseModel):
    model_config = ConfigDict(extra="ignore")

    payload: _Vehicle


class _Provisioning(_Dated, _OfVehicle):
    xsdMsgDefNamespace: NamespaceField | None = None


def read_event(body: bytes) -> InboundEvent:
    """Read the name of the event in a body. Raises FieldError."""
    return read_body(InboundEvent, body)


def check_age(body: bytes, now: datetime) -> None:
    """Refuse an event from the future, and one that is too old to be anything but a replay. Raises FieldError."""
    _check_age(read_body(_Dated, body).timestamp, now)


def _check_age(timestamp: datetime, now: datetime) -> None:
    if timestamp > now + _CLOCK_TOLERANCE:
        raise FieldError("timestamp : must not be in the future")
    if timestamp < now - MAX_AGE:
        raise FieldError(f"timestamp : must not be older than {MAX_AGE.days} days")


def read_pcid(body: bytes) -> PCID:
    """Read the vehicle that an event is about. Raises FieldError."""
    pcid: PCID = read_body(_OfVehicle, body).payload.pcid
    return pcid


def read_provisioning_event(event: InboundEvent, body: bytes, now: datetime) -> ProvisioningEvent | None:
    """Return the event if it is about a vehicle's certificate, else None. Raises FieldError.

    An unknown name of such an event is an error: to accept it without effect would leave contracts that their vehicle
    cannot decrypt.
    """
    try:
        change = parse_event_name(event.eventType)
    except FieldError:
        _log.warning("provisioning event unknown", event_type=event.eventType[:_MAX_LOGGED])
        raise
    if change is None:
        return None
    found = read_body(_Provisioning, body)
    _check_age(found.timestamp, now)
    return ProvisioningEvent(change, found.payload.pcid, found.timestamp, found.xsdMsgDefNamespace)


def describe_webhook(
    operation_id: str, summary: str, event: dict[str, Any], parameters: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Return the OpenAPI description of a webhook of this pool. event: JSON schema. parameters: besides signatures."""
    one = "(sha256=)?[0-9A-Fa-f]{64}"
    signature = {
        "in": "header",
        "required": False,
        "schema": {"type": "string", "pattern": f"^{one}(, ?{one})*$"},
        "description": "HMAC-SHA256 of the body, hexadecimal, or a list of such values; in one of these headers.",
    }
    failures = {
        code: {"description": "Error", "content": json_content("Error")}
        for code in ("400", "403", "404", "413", "415", "500", "503")
    }
    return {
        "operationId": operation_id,
        "summary": summary,
        "parameters": [*parameters, *({"name": name, **signature} for name in SIGNATURE_HEADERS)],
        "requestBody": {"required": True, "content": {"application/json": {"schema": event}}},
        "responses": {"200": {"description": "Success"}, **failures},
        "security": [],
    }
