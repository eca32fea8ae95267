"""The API's JSON, in its own casing. The one place that knows it; server, client and events share it.

Source: OPNC API 1.0, components/schemas; where we differ, docs/spec-divergences.md says so.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from ccp.errors import FieldError
from ccp.ids import (
    EMAID,
    EMAID_PATTERN,
    FINGERPRINT_PATTERN,
    PCID,
    PCID_PATTERN,
    Fingerprint,
    Namespace,
    parse_session_id,
)

PLACEHOLDER_EMAID: Final = "ZZZZZ000000000"
"""Stands where the API demands an EMAID and there is none: in the item that carries a negative message."""
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


def _field(parse: Any, name: str, schema: dict[str, Any]) -> Any:
    """A pydantic type for an id: read by its own parser, described by the API's pattern."""

    def validate(value: object) -> Any:
        if not isinstance(value, str):
            raise PydanticCustomError("field", "{sentence}", {"sentence": f"{name} : must be a string"})
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


class Error(_Wire):
    """errorMessages: at least one sentence, none twice. traceId: also in the log and in the header X-Trace-Id."""

    errorMessages: list[str]
    traceId: str


Members: TypeAlias = dict[str, Any]


def distinguished_name(dn: str) -> str | None:
    """The name, if the API's pattern allows it in an answer; being informative, it is left out otherwise."""
    return dn if dn and _DN.fullmatch(dn) else None


def b64(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")


def field_error(problems: Iterable[ErrorDetails]) -> FieldError:
    """What pydantic found, in the API's own sentences."""
    return FieldError(*dict.fromkeys(map(_sentence, problems)))


def _sentence(problem: ErrorDetails) -> str:
    if problem["type"] == "field":
        return problem["msg"]
    if problem["type"] in ("json_invalid", "model_type", "model_attributes_type", "dict_type"):
        return "The body is not a JSON object."
    place = ".".join(str(step) for step in problem["loc"] if step not in ("body", "query", "path", "header"))
    text = "must not be null" if problem["type"] == "missing" else problem["msg"]
    return f"{place} : {text}"


Body = TypeVar("Body", bound=BaseModel)


def read_body(model: type[Body], octets: bytes) -> Body:
    """Read a JSON body. Raises FieldError naming every field that is wrong."""
    if len(octets) > _LARGE and sum(map(octets.count, (b",", b"[", b"{"))) > _MOST_PARTS:
        raise FieldError(f"The body has more than {_MOST_PARTS} members and elements.")
    try:
        return model.model_validate_json(octets)
    except ValidationError as exc:
        raise field_error(exc.errors(include_url=False, include_context=False, include_input=False)) from exc
