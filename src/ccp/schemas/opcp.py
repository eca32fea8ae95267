"""The JSON of OPCP 1.0, the predecessor of OPNC, in its casing.

Source: the API descriptions of OPCP 1.0 (CCP and RCP) and the clients that speak it; docs/spec-divergences.md lists the
differences.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import Field

from ccp.errors import FieldError
from ccp.ids import FINGERPRINT_PATTERN, Fingerprint
from ccp.schemas.common import (
    ALWAYS_EXI,
    LIMITED,
    APIModel,
    Boolean,
    EMAIDField,
    Error,
    FingerprintField,
    NamespaceField,
    PCIDField,
    RoutingHeaders,
    TimestampField,
    string_field,
)
from ccp.schemas.publication import SignedContractDataOrXML

TAG: Final = "OPCP"
"""The name of the dialect in the OpenAPI description."""

_UUID_PATTERN: Final = r"^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$"
_UUID: Final = re.compile(_UUID_PATTERN[1:-1], re.ASCII)
# OPCP's pattern is ^((CN|OU|O|C|DC|ST)=[^,]+,? ?)+$. This one matches the same names, in linear time.
_ATTRIBUTE: Final = r"(?:CN|OU|O|C|DC|ST)=[^,]+"
_DN: Final = re.compile(rf"{_ATTRIBUTE}(?:, ?{_ATTRIBUTE})*,? ?")


def _parse_root(text: str) -> Fingerprint | UUID:
    if _UUID.fullmatch(text):
        return UUID(text)
    try:
        return Fingerprint.parse(text)
    except FieldError:
        raise FieldError(
            "cpsV2GRootCertificateFingerprint : must be 64 hexadecimal digits (SHA-256), or the rootCertificateId of "
            "a root of this pool"
        ) from None


RootField: Any = string_field(
    _parse_root,
    "cpsV2GRootCertificateFingerprint",
    {"anyOf": [{"pattern": FINGERPRINT_PATTERN}, {"format": "uuid", "pattern": _UUID_PATTERN}]},
)
"""A V2G root: a Fingerprint, or the UUID by which the list of roots identifies it.

The published description gives this SHA-256 fingerprint the pattern of a UUID.
"""


@lru_cache(256)  # There are few roots, and each listed contract names one.
def distinguished_name(dn: str) -> str | None:
    """Return the name if OPCP's pattern allows it, else None: the member is informative and may be left out."""
    return dn if dn and _DN.fullmatch(dn) else None


class DeliverHeaders(RoutingHeaders):
    """The headers of POST /signedContractData.

    local_only: `broadcast: true` forbids to ask other pools here; in OPNC it allows it.
    """

    always_exi: Annotated[Boolean, Field(alias="alwaysReturnEXI", description=ALWAYS_EXI)] = True
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
    cpsV2GRootCertificateFingerprint: FingerprintField | None = None


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


class NegativeMessageDef(APIModel):
    """A negative message. certificateInstallationRes: EXI in Base64."""

    certificateInstallationRes: str


class NegativeEmaidContent(APIModel):
    """An item of the `CCPResponse` of a 404."""

    messageDef: NegativeMessageDef


class NegativeCCPResponse(APIModel):
    """The list of messages of a 404."""

    emaidContent: list[NegativeEmaidContent]


class OPCPNotFound(Error):
    """A 404 of POST /signedContractData. CCPResponse: absent unless a negative message was asked for."""

    CCPResponse: NegativeCCPResponse | None = None


class OPCPSignedContractDataRequest(SignedContractDataOrXML):
    """The body of PUT /signedContractData: that of OPNC, with more names for members, and roots by UUID."""

    metadata: Annotated[str, Field(max_length=10_000, pattern="^[^\\x00]*$")] | None = None
    cpsV2GRootCertificateFingerprint: RootField | None = None

    def any_metadata(self) -> str | None:
        """The metadata under either name. Raises FieldError for two different values."""
        if self.metadata is None or self.metaData in (None, self.metadata):
            return self.metadata if self.metadata is not None else self.metaData
        raise FieldError("metadata : differs from metaData")


class ProvidedSignedContractData(APIModel):
    """The response to GET /provideSignedContractData. certificateInstallationRes: EXI in Base64."""

    certificateInstallationRes: str
    xsdMsgDefNamespace: NamespaceField
    cpsV2GRootCertificateFingerprint: FingerprintField | None = None


class _XMLContract(APIModel):
    pcid: PCIDField
    emaid: EMAIDField
    xsdMsgDefNamespace: NamespaceField
    contractCertificate: str
    certValidFrom: TimestampField
    certValidTo: TimestampField
    cpsRootCertificateDN: str | None = None
    cpsRootDistinguishedName: str | None = None


class XMLContract(_XMLContract):
    """A contract without its message. contractCertificate: DER in Base64.

    priority: 1 is the vehicle's default; clients in production read it, the published description does not have it.
    cpsRootCertificateDN, cpsRootDistinguishedName: the same name, under that of the schema and that of the examples.
    """

    defaultContract: bool
    priority: int
    cpsV2GRootCertificateFingerprint: FingerprintField | None = None


class XMLContracts(APIModel):
    """The response to the queries for contracts of an EMAID or a PCID."""

    XMLContracts: list[XMLContract]


class RootCertificate(APIModel):
    """A trusted root.

    caCertificate: DER in Base64. rootAuthorityKeyIdentifier: Base64. rootAuthorityKeyIdentifierHex,
    rootIssuerSerialNumber, fingerprint (SHA-256), fingerprintSha1: hexadecimal. signatureAlgorithm: the curve of its
    key. crossCertificatePair: CertificatePair of X.509, DER in Base64. Members that cannot be derived are absent.
    """

    rootCertificateId: str
    distinguishedName: str
    caCertificate: str
    commonName: str
    rootAuthorityKeyIdentifier: str
    rootAuthorityKeyIdentifierHex: str
    rootIssuerSerialNumber: str
    validFrom: str
    validTo: str
    organizationName: str
    rootType: str
    fingerprint: str
    fingerprintSha1: str
    signatureAlgorithm: str | None = None
    xsdMsgDefNamespace: str | None = None
    crossCertificatePair: str | None = None


class RootCertificates(APIModel):
    """The list of trusted roots."""

    rootCertificates: list[RootCertificate]


class RootCertificateCollection(APIModel):
    """The response to GET /v1/root/rootCerts."""

    RootCertificateCollection: RootCertificates


class RootResponse(APIModel):
    """The response to GET /v1/root/rootCerts/{id}."""

    RootResponse: RootCertificate


# --- Responses of other pools, as a client reads them ----------------------------------------------------------------


class _ReceivedRootFingerprint(APIModel):
    """A member with anything as fingerprint: the published description gives it the pattern of a UUID or of a name."""

    cpsV2GRootCertificateFingerprint: str | None = None

    @property
    def root(self) -> Fingerprint | None:
        """The V2G root of the provisioning service; None if the pool gives no fingerprint."""
        try:
            return Fingerprint.parse(self.cpsV2GRootCertificateFingerprint or "")
        except FieldError:
            return None


class ReceivedRootCertificate(APIModel):
    """As `RootCertificate`, without what the certificate says itself."""

    rootCertificateId: str | None = None
    caCertificate: str
    rootType: str | None = None


class ReceivedRootCertificateList(APIModel):
    """As `RootCertificates`, with a limited number of items."""

    rootCertificates: Annotated[list[ReceivedRootCertificate], LIMITED]


class ReceivedRootCertificates(APIModel):
    """As `RootCertificateCollection`, with a limited number of items."""

    RootCertificateCollection: ReceivedRootCertificateList


class ReceivedRootResponse(APIModel):
    """As `RootResponse`, without what the certificate says itself."""

    RootResponse: ReceivedRootCertificate


class ReceivedMessageDef(_ReceivedRootFingerprint, MessageDef):
    """As `MessageDef`, with anything as fingerprint."""


class ReceivedEmaidContent(APIModel):
    """As `EmaidContent`."""

    messageDef: ReceivedMessageDef


class ReceivedEmaidContents(APIModel):
    """As `CCPResponse`, with a limited number of items."""

    emaidContent: Annotated[list[ReceivedEmaidContent], LIMITED]


class ReceivedOPCPSignedContractData(APIModel):
    """As `OPCPSignedContractData`, with a limited number of items and without the namespace."""

    CCPResponse: ReceivedEmaidContents


class ReceivedXMLContract(_ReceivedRootFingerprint, _XMLContract):
    """As `XMLContract`, with what pools leave out or spell differently. One of the first two is there."""

    defaultContract: bool | None = None
    priority: int | None = None

    @property
    def is_default(self) -> bool:
        """Whether the contract is the vehicle's default."""
        return self.priority == 1 if self.defaultContract is None else self.defaultContract


class ReceivedProvidedSignedContractData(_ReceivedRootFingerprint, ProvidedSignedContractData):
    """As `ProvidedSignedContractData`, with anything as fingerprint."""


class ReceivedXMLContracts(APIModel):
    """As `XMLContracts`, with a limited number of items."""

    XMLContracts: Annotated[list[ReceivedXMLContract], LIMITED]
