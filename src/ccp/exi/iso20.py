"""ISO 15118-20 CertificateInstallation messages: classes, declarations, event codes.

The conventions are those of `iso2`. Exactly one of the three encrypted keys in SignedInstallationData is set.
"""

from __future__ import annotations

from typing import NamedTuple

from ccp.exi.datatypes import (
    UNSIGNED_BYTE,
    UNSIGNED_LONG,
    attribute,
    binary,
    content,
    enumeration,
    one,
    one_of,
    text,
    wrapper,
)
from ccp.exi.iso2 import ISSUER_SERIAL, MAX_ROOTS, SESSION_ID, X509IssuerSerial
from ccp.exi.schema import ElementType
from ccp.exi.xmldsig import SIGNATURE, SIGNED_INFO, Signature
from ccp.exi.xmldsig import XML_NAMESPACE as DSIG

NAMESPACE = "urn:iso:15118:20:2020:MsgDef"
PROCESSING = ("Finished", "Ongoing", "Ongoing_WaitingForCustomerInteraction")
CURVES = ("SECP521", "X448")
RESPONSE_CODES = (
    *("OK", "OK_CertificateExpiresSoon", "OK_NewSessionEstablished", "OK_OldSessionJoined"),
    *("OK_PowerToleranceConfirmed", "WARNING_AuthorizationSelectionInvalid", "WARNING_CertificateExpired"),
    *("WARNING_CertificateNotYetValid", "WARNING_CertificateRevoked", "WARNING_CertificateValidationError"),
    *("WARNING_ChallengeInvalid", "WARNING_EIMAuthorizationFailure", "WARNING_eMSPUnknown"),
    *("WARNING_EVPowerProfileViolation", "WARNING_GeneralPnCAuthorizationError", "WARNING_NoCertificateAvailable"),
    *("WARNING_NoContractMatchingPCIDFound", "WARNING_PowerToleranceNotConfirmed"),
    *("WARNING_ScheduleRenegotiationFailed", "WARNING_StandbyNotAllowed", "WARNING_WPT", "FAILED"),
    *("FAILED_AssociationError", "FAILED_ContactorError", "FAILED_EVPowerProfileInvalid"),
    *("FAILED_EVPowerProfileViolation", "FAILED_MeteringSignatureNotValid", "FAILED_NoEnergyTransferServiceSelected"),
    *("FAILED_NoServiceRenegotiationSupported", "FAILED_PauseNotAllowed", "FAILED_PowerDeliveryNotApplied"),
    *("FAILED_PowerToleranceNotConfirmed", "FAILED_ScheduleRenegotiation", "FAILED_ScheduleSelectionInvalid"),
    *("FAILED_SequenceError", "FAILED_ServiceIDInvalid", "FAILED_ServiceSelectionInvalid", "FAILED_SignatureError"),
    *("FAILED_UnknownSession", "FAILED_WrongChargeParameter"),
)


class Header(NamedTuple):
    """The message header. SessionID: at most eight bytes. TimeStamp: seconds since 1970."""

    SessionID: bytes
    TimeStamp: int
    Signature: Signature | None = None


class OEMProvisioningCertificateChain(NamedTuple):
    """The vehicle's chain: leaf and sub-CAs (DER)."""

    Id: str
    Certificate: bytes
    SubCertificates: tuple[bytes, ...] | None = None


class CertificateInstallationReq(NamedTuple):
    """The request, a document."""

    Header: Header
    OEMProvisioningCertificateChain: OEMProvisioningCertificateChain
    ListOfRootCertificateIDs: tuple[X509IssuerSerial, ...]
    MaximumContractCertificateChains: int
    PrioritizedEMAIDs: tuple[str, ...] | None = None


class CertificateChain(NamedTuple):
    """CPSCertificateChain, and ContractCertificateChain, in which SubCertificates are mandatory."""

    Certificate: bytes
    SubCertificates: tuple[bytes, ...] | None = None


class SignedInstallationData(NamedTuple):
    """The signed part of the response."""

    Id: str
    ContractCertificateChain: CertificateChain
    ECDHCurve: str
    DHPublicKey: bytes
    SECP521_EncryptedPrivateKey: bytes | None = None
    X448_EncryptedPrivateKey: bytes | None = None
    TPM_EncryptedPrivateKey: bytes | None = None


class CertificateInstallationRes(NamedTuple):
    """The response, a document."""

    Header: Header
    ResponseCode: str
    EVSEProcessing: str
    CPSCertificateChain: CertificateChain
    SignedInstallationData: SignedInstallationData
    RemainingContractCertificateChains: int


# Namespaces of the XML schemas, see `iso2`.
_MESSAGES, _TYPES = (f"urn:iso:std:iso:15118:-20:{name}" for name in ("CommonMessages", "CommonTypes"))
XML_NAMESPACES = {"v2g": _MESSAGES, "types": _TYPES, "ds": DSIG}


def _type(name: str, namespace: str = _MESSAGES) -> str:
    return f"{{{namespace}}}{name}"


CERTIFICATE = binary(1600, _type("certificateType"))
_SUB_CERTIFICATES = wrapper(_type("SubCertificatesType"), "Certificate", CERTIFICATE, 3)
_SESSION_ID = SESSION_ID._replace(name=_type("sessionIDType", _TYPES))

# The base types of all messages declare the header and the response code.
_HEADER = one(
    "Header",
    ElementType(
        _type("MessageHeaderType", _TYPES),
        Header,
        one("SessionID", _SESSION_ID),
        one("TimeStamp", UNSIGNED_LONG),
        one("Signature", SIGNATURE, optional=True, namespace=DSIG),
    ),
    namespace=_TYPES,
)
_RESPONSE_CODE = one("ResponseCode", enumeration(RESPONSE_CODES, _type("responseCodeType", _TYPES)), namespace=_TYPES)
_OEM_CHAIN = ElementType(
    _type("SignedCertificateChainType"),
    OEMProvisioningCertificateChain,
    attribute("Id"),
    one("Certificate", CERTIFICATE),
    one("SubCertificates", _SUB_CERTIFICATES, optional=True),
    positioned=True,
)
_REQ = ElementType(
    _type("CertificateInstallationReqType"),
    CertificateInstallationReq,
    _HEADER,
    one("OEMProvisioningCertificateChain", _OEM_CHAIN),
    one(
        "ListOfRootCertificateIDs",
        wrapper(_type("ListOfRootCertificateIDsType", _TYPES), "RootCertificateID", ISSUER_SERIAL, MAX_ROOTS),
    ),
    one("MaximumContractCertificateChains", UNSIGNED_BYTE),
    one(
        "PrioritizedEMAIDs",
        wrapper(_type("EMAIDListType"), "EMAID", text(255, _type("identifierType", _TYPES)), 8),
        optional=True,
    ),
)
_CPS_CHAIN = ElementType(
    _type("CertificateChainType"),
    CertificateChain,
    one("Certificate", CERTIFICATE),
    one("SubCertificates", _SUB_CERTIFICATES, optional=True),
)
_CONTRACT_CHAIN = ElementType(
    _type("ContractCertificateChainType"),
    CertificateChain,
    one("Certificate", CERTIFICATE),
    one("SubCertificates", _SUB_CERTIFICATES),
)
_SIGNED = ElementType(
    _type("SignedInstallationDataType"),
    SignedInstallationData,
    attribute("Id"),
    one("ContractCertificateChain", _CONTRACT_CHAIN),
    one("ECDHCurve", enumeration(CURVES, _type("ecdhCurveType"))),
    one("DHPublicKey", binary(133, _type("dhPublicKeyType"))),
    one_of(
        ("SECP521_EncryptedPrivateKey", binary(94, _type("secp521_EncryptedPrivateKeyType"))),
        ("X448_EncryptedPrivateKey", binary(84, _type("x448_EncryptedPrivateKeyType"))),
        ("TPM_EncryptedPrivateKey", binary(206, _type("tpm_EncryptedPrivateKeyType"))),
    ),
    positioned=True,
)
_RES = ElementType(
    _type("CertificateInstallationResType"),
    CertificateInstallationRes,
    _HEADER,
    _RESPONSE_CODE,
    one("EVSEProcessing", enumeration(PROCESSING, _type("processingType", _TYPES))),
    one("CPSCertificateChain", _CPS_CHAIN),
    one("SignedInstallationData", _SIGNED),
    # An element type and not a simple type, so that its position is reported and it can be replaced in stored messages.
    one(
        "RemainingContractCertificateChains",
        ElementType(UNSIGNED_BYTE.name, None, content(UNSIGNED_BYTE), positioned=True),
    ),
)

DOCUMENTS: dict[str, tuple[int, int, ElementType]] = {
    "CertificateInstallationReq": (7, 6, _REQ),
    "CertificateInstallationRes": (8, 6, _RES),
}
FRAGMENT_WIDTH, FRAGMENT_END = 9, 282
FRAGMENTS: dict[str, tuple[int, ElementType]] = {
    "CertificateInstallationReq": (27, _REQ),
    "CertificateInstallationRes": (28, _RES),
    "OEMProvisioningCertificateChain": (128, _OEM_CHAIN),
    "Signature": (225, SIGNATURE),
    "SignedInfo": (230, SIGNED_INFO),
    "SignedInstallationData": (231, _SIGNED),
}
