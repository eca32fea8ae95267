"""Types that the JSON APIs share: ids, headers of every operation, the error body.

Source: OPNC API 1.0, components/schemas; docs/spec-divergences.md lists the differences.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from ccp import ids
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

JSONObject: TypeAlias = dict[str, Any]

PartyType: TypeAlias = Literal["emsp", "cpo", "oem", "pki", "cps", "pcp", "ccp"]
"""Kinds of party that the routing headers name."""

HOP_HEADER: Final = "X-CCP-Hop"
"""Set by a pool that forwards a request to another pool, which then does not forward it further."""

PLACEHOLDER_EMAID: Final = ids.PLACEHOLDER_EMAID
"""Stands for a contract in a response without one."""
PLACEHOLDER_PCID: Final = "ZZZ00000000000000"
"""Stands for a vehicle whose certificate contains no PCID."""


def string_field(parse: Any, name: str, schema: dict[str, Any]) -> Any:
    """Build a pydantic type for a string.

    parse: reads the string, or raises FieldError, whose sentence becomes the error of the field. name: of the field,
    for other errors. schema: JSON schema that describes the string.
    """

    def validate(value: object) -> Any:
        if not isinstance(value, str):
            problem = "must not be null" if value is None else "must be a string"
            raise PydanticCustomError("field", "{sentence}", {"sentence": f"{name} : {problem}"})
        try:
            return parse(value)
        except FieldError as exc:
            raise PydanticCustomError("field", "{sentence}", {"sentence": str(exc)}) from exc

    return Annotated[Any, PlainValidator(validate), WithJsonSchema({"type": "string", **schema})]


EMAIDField: Any = string_field(EMAID.parse, "emaid", {"pattern": EMAID_PATTERN, "minLength": 14, "maxLength": 36})
PCIDField: Any = string_field(PCID.parse, "pcid", {"pattern": PCID_PATTERN, "minLength": 17, "maxLength": 18})
FingerprintField: Any = string_field(
    Fingerprint.parse, "cpsV2GRootCertificateFingerprint", {"pattern": FINGERPRINT_PATTERN}
)
SessionIDField: Any = string_field(parse_session_id, "sessionID", {"pattern": "^([0-9a-fA-F]{2}){0,8}$"})
NamespaceField: Any = string_field(Namespace.parse, "xsdMsgDefNamespace", {"enum": [n.value for n in Namespace]})
TimestampField: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]


def _boolean(value: object) -> object:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, bool):
        return value
    raise PydanticCustomError("boolean", "must be true or false")


Boolean: TypeAlias = Annotated[bool, BeforeValidator(_boolean)]
"""A boolean in a header or a query: the words true and false, in any case; not 1, yes or on."""


MAX_ITEMS: Final = 256
"""Items that a client reads of one response: more contracts than any vehicle has, more variants than any contract."""
# pydantic goes on after a wrong item unless `fail_fast` is set; a megabyte of them takes seconds.
LIMITED: Final = Field(max_length=MAX_ITEMS, fail_fast=True)

ALWAYS_EXI: Final = "false: refuse with an Error instead of a message for the vehicle."
"""Description of the header alwaysReturnEXI."""


class APIModel(BaseModel):
    """Base of received and sent JSON objects. Unknown members are ignored, because the APIs grow."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Routing(BaseModel):
    """The original sender and the addressee of a request: the OPNC-from and OPNC-to headers.

    hop: set by a pool that forwards the request to another pool, see `HOP_HEADER`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    from_type: Annotated[PartyType | None, Field(alias="OPNC-from-party-type")] = None
    from_id: Annotated[str | None, Field(alias="OPNC-from-party-id")] = None
    to_type: Annotated[PartyType | None, Field(alias="OPNC-to-party-type")] = None
    to_id: Annotated[str | None, Field(alias="OPNC-to-party-id")] = None
    hop: Annotated[
        str | None, Field(alias=HOP_HEADER, description="The pool that passed the request on; it goes no further.")
    ] = None

    def headers(self) -> dict[str, str]:
        """Return the headers to send. Raises FieldError for a value that no header can carry."""
        headers: dict[str, str] = self.model_dump(by_alias=True, include=set(Routing.model_fields), exclude_none=True)
        for name, value in headers.items():
            if not (value.isascii() and value.isprintable()):
                raise FieldError(f"{name} : must be printable ASCII")
        return headers


class RoutingHeaders(Routing):
    """`Routing` as a server reads it: from headers with the names of the API and no others."""

    model_config = ConfigDict(populate_by_name=False)


class Error(APIModel):
    """errorMessages: at least one sentence, without repetition. traceId: also in the log and the header X-Trace-Id."""

    errorMessages: list[str]
    traceId: str


def encode_base64(data: bytes) -> str:
    """Base64 with padding and without line breaks, as the APIs carry binary values."""
    return base64.b64encode(data).decode("ascii")
