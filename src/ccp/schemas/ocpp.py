"""The JSON of OCPP that a charging back end hands on: Get15118EVCertificate, with the query of the pool's operation.

Source: OCPP 2.0.1 Edition 2 and OCPP 2.1 Edition 1, part 2: Get15118EVCertificateRequest and -Response.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from ccp.ids import Namespace
from ccp.schemas.common import APIModel, Boolean, RoutingHeaders

PATH: Final = "/ocpp/v1/get15118EVCertificate"
"""Path of the pool's operation, in both dialects."""

IDEMPOTENCY_KEY: Final = "Idempotency-Key"
"""Header that tells a repeated HTTP request from a request that the vehicle has repeated."""


class Limits(NamedTuple):
    """Maximum numbers of characters: of `exiRequest`, `exiResponse` and `additionalInfo`."""

    request: int
    response: int
    info: int


class OCPPVersion(StrEnum):
    """A version of OCPP with the operation Get15118EVCertificate."""

    V2_0_1 = "2.0.1"
    V2_1 = "2.1"

    @property
    def limits(self) -> Limits:
        """Lengths that every station of this version takes."""
        return _LIMITS[self]


_LIMITS: Final = {
    OCPPVersion.V2_0_1: Limits(5600, 7500, 512),
    OCPPVersion.V2_1: Limits(11_000, 17_000, 1024),
}
MAX_REASON_CODE: Final = 20
"""Characters of `reasonCode`."""
MAX_SCHEMA_VERSION: Final = 50
"""Characters of `iso15118SchemaVersion`."""
MAX_EMAIDS: Final = 8
"""Items of `prioritizedEMAIDs`."""


def _version(value: object) -> object:
    """Accept the name of the WebSocket subprotocol, such as ocpp2.0.1."""
    return value.lower().removeprefix("ocpp") if isinstance(value, str) else value


def _integer(value: object) -> object:
    """Accept a number only: true would count as 1, and the text "2" as 2."""
    if isinstance(value, bool | str):
        raise PydanticCustomError("integer", "must be an integer")
    return value


class EVCertificateQuery(BaseModel):
    """The query parameters of Get15118EVCertificate."""

    model_config = ConfigDict(frozen=True)

    version: Annotated[
        OCPPVersion | None,
        BeforeValidator(_version),
        WithJsonSchema({"type": "string", "enum": [version.value for version in OCPPVersion]}),
    ] = Field(
        None,
        alias="ocppVersion",
        description="The station's version of OCPP, or the name of its WebSocket subprotocol. Without it the version "
        "is 2.1 if the body has what only 2.1 allows, else 2.0.1.",
    )
    max_response: Annotated[int, Field(ge=1000, le=1_000_000)] | None = Field(
        None,
        alias="maxExiResponse",
        description="Characters of exiResponse that the station takes, if it is not what its version says.",
    )
    broadcast: Boolean = Field(True, description="false: do not ask other pools.")


class EVCertificateHeaders(RoutingHeaders):
    """The headers of Get15118EVCertificate."""

    idempotency_key: Annotated[
        str | None,
        Field(
            alias=IDEMPOTENCY_KEY,
            min_length=1,
            max_length=255,
            description="The same for each attempt to send one OCPP message, such as its message id.",
        ),
    ] = None


class Get15118EVCertificateRequest(APIModel):
    """The payload of the request, of either version. exiRequest: EXI in Base64."""

    iso15118SchemaVersion: Annotated[str, Field(max_length=MAX_SCHEMA_VERSION)]
    action: Literal["Install", "Update"]
    exiRequest: str
    maximumContractCertificateChains: Annotated[int, BeforeValidator(_integer), Field(ge=0)] | None = None
    prioritizedEMAIDs: (
        Annotated[list[Annotated[str, Field(max_length=255)]], Field(min_length=1, max_length=MAX_EMAIDS)] | None
    ) = None
    customData: dict[str, Any] | None = None

    @property
    def version(self) -> OCPPVersion:
        """The version that the payload shows: 2.1 if it has what 2.0.1 does not allow."""
        newer = self.maximumContractCertificateChains is not None or self.prioritizedEMAIDs is not None
        long = len(self.exiRequest) > OCPPVersion.V2_0_1.limits.request
        return OCPPVersion.V2_1 if newer or long else OCPPVersion.V2_0_1


class StatusInfo(APIModel):
    """Why the status is Failed."""

    reasonCode: Annotated[str, Field(max_length=MAX_REASON_CODE)]
    additionalInfo: str | None = None


class Get15118EVCertificateResponse(APIModel):
    """The payload of the response.

    exiResponse: EXI in Base64; empty if the request could not be read, because no message can answer it.
    remainingContracts: OCPP 2.1, to an ISO 15118-20 vehicle.
    """

    status: Literal["Accepted", "Failed"]
    exiResponse: str
    statusInfo: StatusInfo | None = None
    remainingContracts: Annotated[int, Field(ge=0)] | None = None


_EDITION: Final = re.compile(r"15118[^0-9a-z]*(20|2)(?![0-9])", re.ASCII)
_EDITIONS: Final = {"2": Namespace.ISO2, "20": Namespace.ISO20}


def edition_of(schema_version: str) -> Namespace | None:
    """The edition that `iso15118SchemaVersion` names; None if it names neither.

    Stations send the namespace with and without its parts, in any case: urn:iso:15118:2:2013:MsgDef,
    15118-2:2013:MsgDef, urn:iso:std:iso:15118:-20:CommonMessages, ISO15118-20.
    """
    found = _EDITION.search(schema_version.lower())
    return None if found is None else _EDITIONS[found[1]]
