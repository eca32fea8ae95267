"""The API's JSON, in its own casing. The one place that knows it; server, client and events share it.

Source: OPNC API 1.0, components/schemas; where we differ, docs/spec-divergences.md says so.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, Self, TypeAlias, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from ccp import ids
from ccp.errors import FieldError
from ccp.ids import (
    EMAID,
    EMAID_PATTERN,
    FINGERPRINT_PATTERN,
    PCID,
    PCID_PATTERN,
    WMI,
    Fingerprint,
    Namespace,
    ProviderId,
    parse_session_id,
)
from ccp.schemas import event_types, field_errors, json_bodies, json_input

PLACEHOLDER_EMAID: Final = ids.PLACEHOLDER_EMAID
PLACEHOLDER_PCID: Final = "ZZZ00000000000000"
"""The same for a vehicle whose certificate names none."""

# What the API allows in distinguished names; names of the field may well be outside of it.
_ATTRIBUTE: Final = r"[a-zA-Z0-9\s\-\.]+,\s"
_DN_PATTERN: Final = rf"^(CN={_ATTRIBUTE})?(DC={_ATTRIBUTE})?(O={_ATTRIBUTE})?(OU={_ATTRIBUTE})?(C=[A-Z]{{2}})?$"
_DN: Final = re.compile(_DN_PATTERN[1:-1], re.ASCII)

# What the API knows has seven members and 10,000 characters of text, all of which may be commas. More takes time to
# read (a body of 256 KiB full of brackets a third of a second) and says nothing. A body that is not large cannot take
# long, so nothing is counted in those that come all the time. How deep it may nest is the parser's own limit.
_MOST_PARTS: Final = 12_000
_LARGE: Final = 32_768

T = TypeVar("T")
Members: TypeAlias = dict[str, Any]


def _field(parse: Any, name: str, schema: dict[str, Any]) -> Any:
    """A pydantic type for an id: read by its own parser, described by the API's pattern."""

    def validate(value: object) -> Any:
        if not isinstance(value, str):
            problem = "must not be null" if value is None else "must be a string"
            raise PydanticCustomError("field", "{sentence}", {"sentence": f"{name} : {problem}"})
        try:
            return parse(value)
        except FieldError as exc:
            raise PydanticCustomError("field", "{sentence}", {"sentence": str(exc)}) from exc

    return Annotated[Any, PlainValidator(validate), WithJsonSchema({"type": "string", **schema})]


def _parse_dn(text: str) -> str:
    if not _DN.fullmatch(text):
        raise FieldError(f'cpsRootDistinguishedName : must match "{_DN_PATTERN}"')
    return text


EMAIDField: Any = _field(EMAID.parse, "emaid", {"pattern": EMAID_PATTERN, "minLength": 14, "maxLength": 36})
PCIDField: Any = _field(PCID.parse, "pcid", {"pattern": PCID_PATTERN, "minLength": 17, "maxLength": 18})
FingerprintField: Any = _field(Fingerprint.parse, "cpsV2GRootCertificateFingerprint", {"pattern": FINGERPRINT_PATTERN})
DNField: Any = _field(_parse_dn, "cpsRootDistinguishedName", {"pattern": _DN_PATTERN})
SessionIDField: Any = _field(parse_session_id, "sessionID", {"pattern": "^([0-9a-fA-F]{2}){0,8}$"})
NamespaceField: Any = _field(Namespace.parse, "xsdMsgDefNamespace", {"enum": [n.value for n in Namespace]})


class _Wire(BaseModel):
    """A body from outside: unknown members are passed over, since the API grows."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class SignedContractData(_Wire):
    """What is published, and what is delivered. certificateInstallationRes: EXI in Base64."""

    emaid: EMAIDField
    pcid: PCIDField
    certificateInstallationRes: Annotated[str, Field(min_length=1)]
    xsdMsgDefNamespace: NamespaceField
    # PostgreSQL stores no U+0000 in a text; nobody's contract depends on the engine behind.
    metaData: Annotated[str, Field(max_length=10_000, pattern="^[^\\x00]*$")] | None = None
    cpsV2GRootCertificateFingerprint: FingerprintField | None = None
    cpsRootDistinguishedName: DNField | None = None


class SignedContractDataCollection(_Wire):
    signedContractDataCollection: list[SignedContractData]


class GetSignedContractDataReq(_Wire):
    """certificateInstallationReq: EXI in Base64."""

    certificateInstallationReq: str
    xsdMsgDefNamespace: NamespaceField
    metadata: str | None = None


class ContractData(_Wire):
    """A contract without its message. contractCertificate: DER in Base64."""

    pcid: PCIDField
    emaid: EMAIDField
    xsdMsgDefNamespace: NamespaceField
    contractCertificate: str
    defaultContract: bool
    certValidFrom: Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
    certValidTo: Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
    cpsV2GRootDistinguishedName: str | None = None
    cpsV2GRootCertificateFingerprint: FingerprintField | None = None
    undeliverable: Annotated[str, Field(description="Why the vehicle does not get it; ours beyond the API.")] | None = (
        None
    )


class ContractDataCollection(_Wire):
    contractDataCollection: list[ContractData]


# --- OPCP, the API's predecessor -------------------------------------------------------------------------------------
# Source: the clients that speak it; docs/spec-divergences.md says what of it is our reading.


class MessageDef(_Wire):
    """certificateInstallationRes: EXI in Base64."""

    certificateInstallationRes: str
    emaid: EMAIDField
    metaData: str | None = None


class EmaidContent(_Wire):
    messageDef: MessageDef


class CCPResponse(_Wire):
    emaidContent: list[EmaidContent]


class OPCPSignedContractData(_Wire):
    """What a vehicle gets: exactly one item, because some clients read the first and some the last."""

    CCPResponse: CCPResponse
    xsdMsgDefNamespace: NamespaceField


class ProvidedSignedContractData(_Wire):
    """certificateInstallationRes: EXI in Base64."""

    certificateInstallationRes: str
    xsdMsgDefNamespace: NamespaceField


class XMLContract(_Wire):
    """A contract without its message. contractCertificate: DER in Base64. priority: 1 is the vehicle's default."""

    pcid: PCIDField
    emaid: EMAIDField
    xsdMsgDefNamespace: NamespaceField
    contractCertificate: str
    priority: int
    certValidFrom: Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
    certValidTo: Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]


class XMLContracts(_Wire):
    XMLContracts: list[XMLContract]


class RootCertificate(_Wire):
    """caCertificate: DER in Base64. rootAuthorityKeyIdentifier: Base64. rootIssuerSerialNumber: hexadecimal."""

    rootCertificateId: str
    distinguishedName: str
    caCertificate: str
    commonName: str
    rootAuthorityKeyIdentifier: str
    rootIssuerSerialNumber: str
    validFrom: str
    validTo: str
    organizationName: str
    rootType: str
    fingerprint: str


class RootCertificates(_Wire):
    rootCertificates: list[RootCertificate]


class RootCertificateCollection(_Wire):
    RootCertificateCollection: RootCertificates


# --- The event service -----------------------------------------------------------------------------------------------

API_VERSION: Final = "v1"
"""The one form that events have."""
_API_VERSION: Final = r"^[vV]?1(\.0)?$"
_MOST_METADATA: Final = 4_096  # Octets. It is the subscriber's own notebook, told again in every answer.
_MOST_IDS: Final = 1_000  # More than any car maker or eMSP has.


def _parse_api_version(text: str) -> str:
    if not re.fullmatch(_API_VERSION[1:-1], text):
        raise FieldError(f"apiVersion : must be {API_VERSION}, since events have no other form")
    return API_VERSION


def _events(value: object) -> tuple[str, ...]:
    """The published description has a list in one place and a single name in the other."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PydanticCustomError("field", "enabledEvents : must be a list of events' names")
    try:
        return event_types.parse(names)
    except FieldError as exc:
        raise PydanticCustomError("field", "{sentence}", {"sentence": str(exc)}) from exc


def _metadata(value: object) -> Members:
    """An object that can be written as it was read: no numbers beyond 64 bits, nothing but JSON."""
    if not isinstance(value, dict):
        raise PydanticCustomError("field", "metadata : must be an object")
    try:
        octets = orjson.dumps(value)
    except TypeError as exc:
        raise PydanticCustomError("field", "metadata : has a number or a text that JSON cannot carry") from exc
    if len(octets) > _MOST_METADATA:
        raise PydanticCustomError("field", f"metadata : must be at most {_MOST_METADATA} octets of JSON")
    read: Members = orjson.loads(octets)
    if read != value:  # A number beyond any that has 64 bits, such as 1e999, was written as null.
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
    WithJsonSchema({"type": "object", "description": f"At most {_MOST_METADATA} octets as JSON."}),
]
APIVersionField: Any = _field(_parse_api_version, "apiVersion", {"pattern": _API_VERSION})
WMIField: Any = _field(WMI.parse, "wmi", {"pattern": WMI.pattern})
ProviderIdField: Any = _field(ProviderId.parse, "providerIds", {"pattern": ProviderId.pattern})
WMIs: TypeAlias = Annotated[list[WMIField], Field(max_length=_MOST_IDS)]
ProviderIds: TypeAlias = Annotated[list[ProviderIdField], Field(max_length=_MOST_IDS)]


class _EndpointReq(_Wire):
    """A webhook as its subscriber wants it. What stands under two names may be given under either."""

    url: Annotated[str, Field(description="https; no credentials in it.", max_length=2_048)]
    enabledEvents: EventsField | None = None
    events: Annotated[EventsField | None, Field(description="The same as enabledEvents.")] = None
    wmi: Annotated[WMIs | None, Field(description="WMIs that it is told of; empty or absent: all own ones.")] = None
    wmis: Annotated[WMIs | None, Field(description="The same as wmi.")] = None
    providerIds: Annotated[
        ProviderIds | None, Field(description="Provider ids that it is told of; empty or absent: all own ones.")
    ] = None
    description: Annotated[str, Field(max_length=1_000, pattern="^[^\\x00]*$")] | None = None
    metadata: MetadataField | None = None
    apiVersion: APIVersionField | None = None
    status: Literal["enabled", "disabled"] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for one, other in (("enabledEvents", "events"), ("wmi", "wmis")):
            given = [getattr(self, name) for name in (one, other) if getattr(self, name) is not None]
            if len(given) == 2 and set(given[0]) != set(given[1]):
                raise PydanticCustomError("field", f"{one} and {other} : must be the same where both are given")
        return self

    @property
    def subscribed(self) -> tuple[str, ...] | None:
        """The events, None where nothing is said of them."""
        return self.events if self.enabledEvents is None else self.enabledEvents

    @property
    def own_wmis(self) -> list[WMI] | None:
        return self.wmis if self.wmi is None else self.wmi


class PostEndpointReq(_EndpointReq):
    """A webhook to be made. One of enabledEvents and events is needed."""

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
    """Members of a webhook that shall be other than they are. A list takes the place of the one before."""


class Endpoint(_Wire):
    """A webhook. created: seconds since 1970. wmis, providerIds: those that it is told of."""

    id: str
    apiVersion: str
    created: int
    description: str
    enabledEvents: list[str]
    events: Annotated[list[str], Field(description="The same as enabledEvents.")]
    metadata: Members
    status: Literal["enabled", "disabled"]
    url: str
    secret: Annotated[
        str | None,
        Field(description="Key of the HMAC over each event's body; told on creation, and when it is asked for alone."),
    ] = None
    wmis: Annotated[list[str] | None, Field(description="For an OEM.")] = None
    providerIds: Annotated[list[str] | None, Field(description="For an eMSP.")] = None
    userRole: Literal["OEM", "eMSP"]
    userName: str


class EndpointDelivery(_Wire):
    """An event on its way to a webhook. Times: RFC 3339, UTC.

    eventType: as the webhook is told. attempts: since it was made or replayed. nextAttempt: for one that waits.
    """

    eventId: str
    eventType: str
    pcid: PCIDField
    emaid: EMAIDField
    xsdMsgDefNamespace: NamespaceField
    timestamp: Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
    state: Literal["waiting", "delivered", "dead"]
    attempts: int
    nextAttempt: Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})] | None
    lastStatus: Annotated[int | None, Field(description="HTTP status of the last answer.")]
    lastError: Annotated[str | None, Field(description="Why the last attempt failed.")]
    finishedAt: Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})] | None


class EndpointDeliveries(_Wire):
    """nextCursor: asks for older ones, null where there are none."""

    deliveries: list[EndpointDelivery]
    nextCursor: str | None


class Error(_Wire):
    """errorMessages: at least one sentence, none twice. traceId: also in the log and in the header X-Trace-Id."""

    errorMessages: list[str]
    traceId: str


@lru_cache(256)  # There are few roots, and each answer names one.
def distinguished_name(dn: str) -> str | None:
    """The name, if the API's pattern allows it in an answer; being informative, it is left out otherwise."""
    return dn if dn and _DN.fullmatch(dn) else None


def b64(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")


def field_error(problems: Iterable[ErrorDetails]) -> FieldError:
    """What pydantic found, in the API's own sentences."""
    return FieldError(*dict.fromkeys(map(field_errors.sentence, problems)))


Body = TypeVar("Body", bound=BaseModel)


def read_body(model: type[Body], octets: bytes) -> Body:
    """Read a JSON body. Raises FieldError naming every field that is wrong."""
    if len(octets) > _LARGE and sum(map(octets.count, (b",", b"[", b"{"))) > _MOST_PARTS:
        raise FieldError(f"The body has more than {_MOST_PARTS} members and elements.")
    try:
        body = model.model_validate_json(octets)
    except ValidationError as exc:
        raise json_bodies.refused(model, octets, exc) from exc
    if not json_bodies.has_nothing_else(body, octets):
        json_input.load(octets)
    return body
