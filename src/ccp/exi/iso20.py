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


CERTIFICATE = binary(1600)
_SUB_CERTIFICATES = wrapper("Certificate", CERTIFICATE, 3)

_HEADER = ElementType(
    Header, one("SessionID", SESSION_ID), one("TimeStamp", UNSIGNED_LONG), one("Signature", SIGNATURE, optional=True)
)
_OEM_CHAIN = ElementType(
    OEMProvisioningCertificateChain,
    attribute("Id"),
    one("Certificate", CERTIFICATE),
    one("SubCertificates", _SUB_CERTIFICATES, optional=True),
    positioned=True,
)
_REQ = ElementType(
    CertificateInstallationReq,
    one("Header", _HEADER),
    one("OEMProvisioningCertificateChain", _OEM_CHAIN),
    one("ListOfRootCertificateIDs", wrapper("RootCertificateID", ISSUER_SERIAL, MAX_ROOTS)),
    one("MaximumContractCertificateChains", UNSIGNED_BYTE),
    one("PrioritizedEMAIDs", wrapper("EMAID", text(255), 8), optional=True),
)
_CPS_CHAIN = ElementType(
    CertificateChain, one("Certificate", CERTIFICATE), one("SubCertificates", _SUB_CERTIFICATES, optional=True)
)
_CONTRACT_CHAIN = ElementType(
    CertificateChain, one("Certificate", CERTIFICATE), one("SubCertificates", _SUB_CERTIFICATES)
)
_SIGNED = ElementType(
    SignedInstallationData,
    attribute("Id"),
    one("ContractCertificateChain", _CONTRACT_CHAIN),
    one("ECDHCurve", enumeration(CURVES)),
    one("DHPublicKey", binary(133)),
    one_of(
        ("SECP521_EncryptedPrivateKey", binary(94)),
        ("X448_EncryptedPrivateKey", binary(84)),
        ("TPM_EncryptedPrivateKey", binary(206)),
    ),
    positioned=True,
)
_RES = ElementType(
    CertificateInstallationRes,
    one("Header", _HEADER),
    one("ResponseCode", enumeration(RESPONSE_CODES)),
    one("EVSEProcessing", enumeration(PROCESSING)),
    one("CPSCertificateChain", _CPS_CHAIN),
    one("SignedInstallationData", _SIGNED),
    # An element type and not a simple type, so that its position is reported and it can be replaced in stored messages.
    one("RemainingContractCertificateChains", ElementType(None, content(UNSIGNED_BYTE), positioned=True)),
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
