"""ISO 15118-2 CertificateInstallation: messages, their grammar, event codes.

Classes carry the schema's own names, fields stand in document order with attributes first; what may be absent is None
then. An element that only wraps a list (ListOfRootCertificateIDs, SubCertificates) is the tuple of its items.
`V2G_Message.Body` is the request or the response itself. hexBinary and base64Binary are bytes, enumerations are the
schema's strings.
"""

from __future__ import annotations

from typing import NamedTuple

from ccp.exi.datatypes import (
    INTEGER,
    TEXT_VALUE,
    attribute,
    binary,
    content,
    enumeration,
    hexadecimal,
    one,
    one_of,
    text,
    wrapper,
)
from ccp.exi.grammar import ElementType
from ccp.exi.xmldsig import SIGNATURE, SIGNED_INFO, Signature

NAMESPACE = "urn:iso:15118:2:2013:MsgDef"
FAULT_CODES = ("ParsingError", "NoTLSRootCertificatAvailable", "UnknownError")
RESPONSE_CODES = (
    *("OK", "OK_NewSessionEstablished", "OK_OldSessionJoined", "OK_CertificateExpiresSoon", "FAILED"),
    *("FAILED_SequenceError", "FAILED_ServiceIDInvalid", "FAILED_UnknownSession", "FAILED_ServiceSelectionInvalid"),
    *("FAILED_PaymentSelectionInvalid", "FAILED_CertificateExpired", "FAILED_SignatureError"),
    *("FAILED_NoCertificateAvailable", "FAILED_CertChainError", "FAILED_ChallengeInvalid", "FAILED_ContractCanceled"),
    *("FAILED_WrongChargeParameter", "FAILED_PowerDeliveryNotApplied", "FAILED_TariffSelectionInvalid"),
    *("FAILED_ChargingProfileInvalid", "FAILED_MeteringSignatureNotValid", "FAILED_NoChargeServiceSelected"),
    *("FAILED_WrongEnergyTransferMode", "FAILED_ContactorError", "FAILED_CertificateNotAllowedAtThisEVSE"),
    "FAILED_CertificateRevoked",
)


class Notification(NamedTuple):
    FaultCode: str
    FaultMsg: str | None = None


class Header(NamedTuple):
    SessionID: bytes
    Notification: Notification | None = None
    Signature: Signature | None = None


class X509IssuerSerial(NamedTuple):
    X509IssuerName: str
    X509SerialNumber: int


class CertificateInstallationReq(NamedTuple):
    Id: str
    OEMProvisioningCert: bytes
    ListOfRootCertificateIDs: tuple[X509IssuerSerial, ...]


class CertificateChain(NamedTuple):
    Id: str | None
    Certificate: bytes
    SubCertificates: tuple[bytes, ...] | None = None


class ContractSignatureEncryptedPrivateKey(NamedTuple):
    Id: str
    value: bytes


class DHpublickey(NamedTuple):
    Id: str
    value: bytes


class EMAID(NamedTuple):
    """The element eMAID. In a fragment it stands in a form of its own, see `codec.emaid_fragment`."""

    Id: str
    value: str


class CertificateInstallationRes(NamedTuple):
    ResponseCode: str
    SAProvisioningCertificateChain: CertificateChain
    ContractSignatureCertChain: CertificateChain
    ContractSignatureEncryptedPrivateKey: ContractSignatureEncryptedPrivateKey
    DHpublickey: DHpublickey
    eMAID: EMAID


class V2G_Message(NamedTuple):
    Header: Header
    Body: CertificateInstallationReq | CertificateInstallationRes


SESSION_ID = hexadecimal(8)
CERTIFICATE = binary(800)
MAX_ROOTS = 20

_HEADER = ElementType(
    Header,
    one("SessionID", SESSION_ID),
    one(
        "Notification",
        ElementType(Notification, one("FaultCode", enumeration(FAULT_CODES)), one("FaultMsg", text(64), optional=True)),
        optional=True,
    ),
    one("Signature", SIGNATURE, optional=True),
)
ISSUER_SERIAL = ElementType(X509IssuerSerial, one("X509IssuerName", TEXT_VALUE), one("X509SerialNumber", INTEGER))
_REQ = ElementType(
    CertificateInstallationReq,
    attribute("Id"),
    one("OEMProvisioningCert", CERTIFICATE),
    one("ListOfRootCertificateIDs", wrapper("RootCertificateID", ISSUER_SERIAL, MAX_ROOTS)),
    mark=True,
)
_CHAIN = ElementType(
    CertificateChain,
    attribute("Id", optional=True),
    one("Certificate", CERTIFICATE),
    one("SubCertificates", wrapper("Certificate", CERTIFICATE, 4), optional=True),
    mark=True,
)
_KEY = ElementType(ContractSignatureEncryptedPrivateKey, attribute("Id"), content(binary(48)), mark=True)
_DH = ElementType(DHpublickey, attribute("Id"), content(binary(65)), mark=True)
_EMAID = ElementType(EMAID, attribute("Id"), content(text(15)), mark=True)
_RES = ElementType(
    CertificateInstallationRes,
    one("ResponseCode", enumeration(RESPONSE_CODES)),
    one("SAProvisioningCertificateChain", _CHAIN),
    one("ContractSignatureCertChain", _CHAIN),
    one("ContractSignatureEncryptedPrivateKey", _KEY),
    one("DHpublickey", _DH),
    one("eMAID", _EMAID),
)
# 35 messages may stand in a body, or none, which takes a code as well; two of them are ours.
_BODY = ElementType(
    None,
    one_of(
        *[("another message", None)] * 5,
        ("CertificateInstallationReq", _REQ),
        ("CertificateInstallationRes", _RES),
        *[("another message", None)] * 28,
        ("an empty body", None),
    ),
)
MESSAGE = ElementType(V2G_Message, one("Header", _HEADER), one("Body", _BODY))

DOCUMENTS: dict[str, tuple[int, int, ElementType]] = {"V2G_Message": (76, 7, MESSAGE)}
FRAGMENT_WIDTH, FRAGMENT_END = 8, 244
FRAGMENTS: dict[str, tuple[int, ElementType]] = {
    "CertificateInstallationReq": (15, _REQ),
    "CertificateInstallationRes": (16, _RES),
    "ContractSignatureCertChain": (33, _CHAIN),
    "ContractSignatureEncryptedPrivateKey": (34, _KEY),
    "DHpublickey": (45, _DH),
    "Signature": (203, SIGNATURE),
    "SignedInfo": (208, SIGNED_INFO),
    "V2G_Message": (216, MESSAGE),
    "eMAID": (236, _EMAID),
}
