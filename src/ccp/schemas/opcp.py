"""The JSON of OPCP, the predecessor of OPNC, in its casing.

Source: the clients that speak it; docs/spec-divergences.md says which parts are this project's reading.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ccp.schemas.common import (
    LIMITED,
    APIModel,
    Boolean,
    EMAIDField,
    NamespaceField,
    PCIDField,
    RoutingHeaders,
    TimestampField,
)


class DeliverHeaders(RoutingHeaders):
    """The headers of POST /signedContractData. always_exi: None if the caller leaves it to the pool's setting.

    local_only: `broadcast: true` forbids to ask other pools here; in OPNC it allows it.
    """

    always_exi: Annotated[Boolean | None, Field(alias="alwaysReturnEXI")] = None
    local_only: Annotated[Boolean, Field(alias="broadcast", description="true: do not ask other pools.")] = False

    @property
    def may_ask_peers(self) -> bool:
        """Whether the pool may ask other pools. A request that another pool forwarded is not forwarded again."""
        return not self.local_only and self.hop is None


class MessageDef(APIModel):
    """A signed contract. certificateInstallationRes: EXI in Base64."""

    certificateInstallationRes: str
    emaid: EMAIDField
    metaData: str | None = None


class EmaidContent(APIModel):
    """An item of `CCPResponse`."""

    messageDef: MessageDef


class CCPResponse(APIModel):
    """The list of signed contracts."""

    emaidContent: list[EmaidContent]


class OPCPSignedContractData(APIModel):
    """The response to POST /signedContractData: exactly one item, since some clients read the first, some the last."""

    CCPResponse: CCPResponse
    xsdMsgDefNamespace: NamespaceField


class ProvidedSignedContractData(APIModel):
    """The response to GET /provideSignedContractData. certificateInstallationRes: EXI in Base64."""

    certificateInstallationRes: str
    xsdMsgDefNamespace: NamespaceField


class XMLContract(APIModel):
    """A contract without its message. contractCertificate: DER in Base64. priority: 1 is the vehicle's default."""

    pcid: PCIDField
    emaid: EMAIDField
    xsdMsgDefNamespace: NamespaceField
    contractCertificate: str
    priority: int
    certValidFrom: TimestampField
    certValidTo: TimestampField


class XMLContracts(APIModel):
    """The response to the queries for contracts of an EMAID or a PCID."""

    XMLContracts: list[XMLContract]


class RootCertificate(APIModel):
    """A trusted root.

    caCertificate: DER in Base64. rootAuthorityKeyIdentifier: Base64. rootIssuerSerialNumber: hexadecimal.
    """

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


class RootCertificates(APIModel):
    """The list of trusted roots."""

    rootCertificates: list[RootCertificate]


class RootCertificateCollection(APIModel):
    """The response to GET /v1/root/rootCerts."""

    RootCertificateCollection: RootCertificates


# --- Responses of other pools, as a client reads them ----------------------------------------------------------------


class ReceivedEmaidContents(APIModel):
    """As `CCPResponse`, with a limited number of items."""

    emaidContent: Annotated[list[EmaidContent], LIMITED]


class ReceivedOPCPSignedContractData(APIModel):
    """As `OPCPSignedContractData`, with a limited number of items and without the namespace."""

    CCPResponse: ReceivedEmaidContents


class ReceivedXMLContracts(APIModel):
    """As `XMLContracts`, with a limited number of items."""

    XMLContracts: Annotated[list[XMLContract], LIMITED]
