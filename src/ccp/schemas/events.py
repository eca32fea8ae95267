"""The JSON of the event service: webhooks and their deliveries.

Source: OPNC API 1.0, the webhook paths; docs/spec-divergences.md lists the differences.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

import orjson
from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from ccp.errors import FieldError
from ccp.ids import WMI, ProviderId
from ccp.schemas import event_types
from ccp.schemas.common import (
    LIMITED,
    APIModel,
    EMAIDField,
    JSONObject,
    NamespaceField,
    PCIDField,
    TimestampField,
    string_field,
)
from ccp.schemas.event_types import API_VERSION

_API_VERSION: Final = r"^[vV]?1(\.0)?$"
_MAX_METADATA: Final = 4_096  # Bytes. The pool repeats the subscriber's metadata in every response.
_MAX_IDS: Final = 1_000  # More than any OEM or eMSP has.


def _parse_api_version(text: str) -> str:
    if not re.fullmatch(_API_VERSION[1:-1], text):
        raise FieldError(f"apiVersion : must be {API_VERSION}, since events have no other form")
    return API_VERSION


def _events(value: object) -> tuple[str, ...]:
    """Read a list, or a single name: the published description has one in each place."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PydanticCustomError("field", "enabledEvents : must be a list of events' names")
    try:
        return event_types.parse(names)
    except FieldError as exc:
        raise PydanticCustomError("field", "{sentence}", {"sentence": str(exc)}) from exc


def _metadata(value: object) -> JSONObject:
    """Read an object that can be written back unchanged: JSON only, no numbers beyond 64 bits."""
    if not isinstance(value, dict):
        raise PydanticCustomError("field", "metadata : must be an object")
    try:
        data = orjson.dumps(value)
    except TypeError as exc:
        raise PydanticCustomError("field", "metadata : has a number or a text that JSON cannot carry") from exc
    if len(data) > _MAX_METADATA:
        raise PydanticCustomError("field", f"metadata : must be at most {_MAX_METADATA} bytes of JSON")
    read: JSONObject = orjson.loads(data)
    if read != value:  # orjson writes a number beyond 64 bits, such as 1e999, as null.
        raise PydanticCustomError("field", "metadata : has a number or a text that JSON cannot carry")
    return read


_ONE_EVENT: Final = {"type": "string", "enum": list(event_types.KNOWN)}
EventsField: TypeAlias = Annotated[
    Any,
    PlainValidator(_events),
    WithJsonSchema({"anyOf": [{"type": "array", "items": _ONE_EVENT, "minItems": 1}, _ONE_EVENT]}),
]
MetadataField: TypeAlias = Annotated[
    Any,
    PlainValidator(_metadata),
    WithJsonSchema({"type": "object", "description": f"At most {_MAX_METADATA} bytes as JSON."}),
]
APIVersionField: Any = string_field(_parse_api_version, "apiVersion", {"pattern": _API_VERSION})
WMIField: Any = string_field(WMI.parse, "wmi", {"pattern": WMI.pattern})
ProviderIdField: Any = string_field(ProviderId.parse, "providerIds", {"pattern": ProviderId.pattern})
WMIs: TypeAlias = Annotated[list[WMIField], Field(max_length=_MAX_IDS)]
ProviderIds: TypeAlias = Annotated[list[ProviderIdField], Field(max_length=_MAX_IDS)]


SignatureFormatField: TypeAlias = Literal["sha256", "bare"]


class _EndpointReq(APIModel):
    """The members of a webhook that its subscriber sets. Two of them have a second name; either is accepted."""

    url: Annotated[str, Field(description="https; no credentials in it.", max_length=2_048)]
    enabledEvents: EventsField | None = None
    events: Annotated[EventsField | None, Field(description="The same as enabledEvents.")] = None
    wmi: Annotated[
        WMIs | None, Field(description="WMIs whose events it receives; empty or absent: all of the subscriber's own.")
    ] = None
    wmis: Annotated[WMIs | None, Field(description="The same as wmi.")] = None
    providerIds: Annotated[
        ProviderIds | None,
        Field(description="Provider ids whose events it receives; empty or absent: all of the subscriber's own."),
    ] = None
    description: Annotated[str, Field(max_length=1_000, pattern="^[^\\x00]*$")] | None = None
    metadata: MetadataField | None = None
    apiVersion: APIVersionField | None = None
    status: Literal["enabled", "disabled"] | None = None
    signatureFormat: Annotated[
        SignatureFormatField | None,
        Field(description="Form of X-Operator-Signature: sha256 (default) puts sha256= before the hexadecimal."),
    ] = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for one, other in (("enabledEvents", "events"), ("wmi", "wmis")):
            given = [getattr(self, name) for name in (one, other) if getattr(self, name) is not None]
            if len(given) == 2 and set(given[0]) != set(given[1]):
                raise PydanticCustomError("field", f"{one} and {other} : must be the same where both are given")
        return self

    @property
    def subscribed(self) -> tuple[str, ...] | None:
        """The events, None if the body does not name any."""
        return self.events if self.enabledEvents is None else self.enabledEvents

    @property
    def own_wmis(self) -> list[WMI] | None:
        """The WMIs, None if the body does not name any."""
        return self.wmis if self.wmi is None else self.wmi


class PostEndpointReq(_EndpointReq):
    """The body that creates a webhook. Either enabledEvents or events is required."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["enabledEvents"]}, {"required": ["events"]}]},
    )

    @model_validator(mode="after")
    def _has_events(self) -> Self:
        if self.subscribed is None:
            given = not self.model_fields_set.isdisjoint(("enabledEvents", "events"))
            raise PydanticCustomError("field", f"enabledEvents : {'must not be null' if given else 'is missing'}")
        return self


class PutEndpointUpdateReq(_EndpointReq):
    """The members of a webhook to change. A list replaces the previous one."""


class Endpoint(APIModel):
    """A webhook. created: seconds since 1970. wmis, providerIds: those whose events it receives."""

    id: str
    apiVersion: str
    created: int
    description: str
    enabledEvents: list[str]
    events: Annotated[list[str], Field(description="The same as enabledEvents.")]
    metadata: JSONObject
    status: Literal["enabled", "disabled"]
    url: str
    secret: Annotated[
        str | None,
        Field(description="Key of the HMAC over each event's body; only in the response to its creation."),
    ] = None
    wmis: Annotated[list[str] | None, Field(description="For an OEM.")] = None
    providerIds: Annotated[list[str] | None, Field(description="For an eMSP.")] = None
    userRole: Annotated[str, Field(description="The role that its events are for: OEM, eMSP (MO in OPCP), CPO, CPS.")]
    userName: str
    signatureFormat: SignatureFormatField
    previousSecretsValidUntil: Annotated[
        list[TimestampField], Field(description="Of each replaced secret that still signs, newest first.")
    ]


class ReceivedEndpoint(APIModel):
    """A webhook as a client reads it. Other pools may leave out what the description does not require."""

    id: str
    created: int
    url: str
    enabledEvents: Annotated[list[str], LIMITED] | None = None
    events: Annotated[list[str], LIMITED] | None = None
    description: str | None = None
    metadata: JSONObject | None = None
    status: str | None = None
    secret: str | None = None
    wmis: Annotated[list[str], LIMITED] | None = None
    providerIds: Annotated[list[str], LIMITED] | None = None
    userRole: str | None = None
    userName: str | None = None
    signatureFormat: str | None = None
    previousSecretsValidUntil: Annotated[list[str], LIMITED] | None = None

    @property
    def names(self) -> list[str]:
        """The subscribed events; the published examples have either member."""
        return self.enabledEvents if self.enabledEvents is not None else self.events or []


class SecretRotation(APIModel):
    """The body of a rotation; it may be empty."""

    overlap: Annotated[
        int | None,
        Field(
            strict=True,
            ge=0,
            description="Seconds for which the previous secret stays valid, at most and by default the pool's "
            "event_secret_overlap; 0 ends all older ones at once.",
        ),
    ] = None


class EndpointSecret(APIModel):
    """A new secret, which is not shown again. previousValidUntil: of each older secret that is valid, newest first."""

    id: str
    secret: str
    previousValidUntil: list[TimestampField]


class PingOutcome(APIModel):
    """What came back from a test event.

    eventId: of the test event. delivered: whether the response was 2xx. durationMs: milliseconds. previousSecret:
    whether the receiver accepted the event only when the headers with one signature were for a previous secret.
    """

    eventId: str
    delivered: bool
    status: Annotated[int | None, Field(description="HTTP status; null without a response.")]
    durationMs: float
    error: Annotated[str | None, Field(description="Why it was not delivered.")]
    previousSecret: bool


class EndpointDelivery(APIModel):
    """The delivery of an event to a webhook. Times: RFC 3339, UTC.

    eventType: as sent to the webhook. pcid, emaid: null for the event of a root. xsdMsgDefNamespace: null for the event
    of a root whose key no edition prescribes. attempts: since creation or the last replay. nextAttempt: while waiting.
    """

    eventId: str
    eventType: str
    pcid: PCIDField | None
    emaid: EMAIDField | None
    xsdMsgDefNamespace: NamespaceField | None
    timestamp: TimestampField
    state: Literal["waiting", "delivered", "dead"]
    attempts: int
    nextAttempt: TimestampField | None
    lastStatus: Annotated[int | None, Field(description="HTTP status of the last response.")]
    lastError: Annotated[str | None, Field(description="Why the last attempt failed.")]
    finishedAt: TimestampField | None


class EndpointDeliveries(APIModel):
    """A page of deliveries. nextCursor: of the page with older ones, null on the last page."""

    deliveries: list[EndpointDelivery]
    nextCursor: str | None
