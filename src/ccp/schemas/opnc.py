"""The JSON of OPNC, in its casing, and the headers and query of its operations.

Source: OPNC API 1.0, components/schemas; docs/spec-divergences.md lists the differences.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from ccp.errors import FieldError
from ccp.schemas.common import (
    ALWAYS_EXI,
    LIMITED,
    APIModel,
    Boolean,
    EMAIDField,
    FingerprintField,
    NamespaceField,
    PCIDField,
    RoutingHeaders,
    TimestampField,
    string_field,
)

# The API's pattern of a distinguished name. Many certificates of the field have names outside of it.
_ATTRIBUTE: Final = r"[a-zA-Z0-9\s\-\.]+,\s"
_DN_PATTERN: Final = rf"^(CN={_ATTRIBUTE})?(DC={_ATTRIBUTE})?(O={_ATTRIBUTE})?(OU={_ATTRIBUTE})?(C=[A-Z]{{2}})?$"
_DN: Final = re.compile(_DN_PATTERN[1:-1], re.ASCII)


def _parse_dn(text: str) -> str:
    if not _DN.fullmatch(text):
        raise FieldError(f'cpsRootDistinguishedName : must match "{_DN_PATTERN}"')
    return text


DNField: Any = string_field(_parse_dn, "cpsRootDistinguishedName", {"pattern": _DN_PATTERN})


@lru_cache(256)  # There are few roots, and each response names one.
def distinguished_name(dn: str) -> str | None:
    """Return the name if the API's pattern allows it, else None: the member is informative and may be left out."""
    return dn if dn and _DN.fullmatch(dn) else None


class DeliverHeaders(RoutingHeaders):
    """The headers of POST /signedcontractdata."""

    always_exi: Annotated[Boolean, Field(alias="alwaysReturnEXI", description=ALWAYS_EXI)] = True
    broadcast: Annotated[Boolean, Field(description="true: the pool may ask other pools.")] = False

    @property
    def may_ask_peers(self) -> bool:
        """Whether the pool may ask other pools. A request that another pool forwarded is not forwarded again."""
        return self.broadcast and self.hop is None


class PublishQuery(BaseModel):
    """The query parameters of PUT /signedcontractdata."""

    model_config = ConfigDict(frozen=True)

    dry_run: Boolean = Field(False, alias="dryRun", description="true: run every check, store nothing, and report.")


class SignedContractData(APIModel):
    """A signed contract, in publications and in deliveries.

    certificateInstallationRes: EXI in Base64; in publications also XML in Base64.
    """

    emaid: EMAIDField
    pcid: PCIDField
    certificateInstallationRes: Annotated[str, Field(min_length=1)]
    xsdMsgDefNamespace: NamespaceField
    # PostgreSQL cannot store U+0000 in a text; SQLite could, but both accept the same contracts.
    metaData: Annotated[str, Field(max_length=10_000, pattern="^[^\\x00]*$")] | None = None
    cpsV2GRootCertificateFingerprint: FingerprintField | None = None
    cpsRootDistinguishedName: DNField | None = None

    @property
    def message(self) -> str:
        """The message, EXI or XML, in Base64."""
        return self.certificateInstallationRes


class SignedContractDataCollection(APIModel):
    """The response to POST /signedcontractdata."""

    signedContractDataCollection: list[SignedContractData]


class GetSignedContractDataReq(APIModel):
    """The body of POST /signedcontractdata. certificateInstallationReq: EXI in Base64."""

    certificateInstallationReq: str
    xsdMsgDefNamespace: NamespaceField
    metadata: str | None = None


class ContractData(APIModel):
    """A contract without its message. contractCertificate: DER in Base64."""

    pcid: PCIDField
    emaid: EMAIDField
    xsdMsgDefNamespace: NamespaceField
    contractCertificate: str
    defaultContract: bool
    certValidFrom: TimestampField
    certValidTo: TimestampField
    cpsV2GRootDistinguishedName: str | None = None
    cpsV2GRootCertificateFingerprint: FingerprintField | None = None
    undeliverable: (
        Annotated[str, Field(description="Why the vehicle does not get it; an extension of the API.")] | None
    ) = None


class ContractDataCollection(APIModel):
    """The response to the queries for contracts of an EMAID or a PCID."""

    contractDataCollection: list[ContractData]


# --- Responses of other pools, as a client reads them ----------------------------------------------------------------


class ReceivedSignedContractData(SignedContractData):
    """As `SignedContractData`, without limits on the informative members: other pools spell them differently."""

    metaData: str | None = None
    cpsRootDistinguishedName: str | None = None


class ReceivedSignedContractDataCollection(APIModel):
    """As `SignedContractDataCollection`, with a limited number of items."""

    signedContractDataCollection: Annotated[list[ReceivedSignedContractData], LIMITED]


class ReceivedContractDataCollection(APIModel):
    """As `ContractDataCollection`, with a limited number of items."""

    contractDataCollection: Annotated[list[ContractData], LIMITED]
