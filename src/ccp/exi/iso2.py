"""ISO 15118-2 CertificateInstallation messages: classes, declarations, event codes.

Class and field names are those of the XML schema. Fields are in document order, attributes first; an absent optional
field is None. An element that only wraps a list (ListOfRootCertificateIDs, SubCertificates) is the tuple of its items.
`V2G_Message.Body` is the request or the response itself. hexBinary and base64Binary are bytes; enumerations are
strings.
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
from ccp.exi.schema import ElementType, SimpleType
from ccp.exi.xmldsig import SIGNATURE, SIGNED_INFO, Signature
from ccp.exi.xmldsig import XML_NAMESPACE as DSIG

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
    """A fault notification of the header."""

    FaultCode: str
    FaultMsg: str | None = None


class Header(NamedTuple):
    """The message header. SessionID: at most eight bytes."""

    SessionID: bytes
    Notification: Notification | None = None
    Signature: Signature | None = None


class X509IssuerSerial(NamedTuple):
    """Identifies a certificate by its issuer's name, as text, and its serial number."""

    X509IssuerName: str
    X509SerialNumber: int


class CertificateInstallationReq(NamedTuple):
    """Body of the request."""

    Id: str
    OEMProvisioningCert: bytes
    ListOfRootCertificateIDs: tuple[X509IssuerSerial, ...]


class CertificateChain(NamedTuple):
    """A chain; Certificate is the leaf, SubCertificates are the sub-CAs (DER)."""

    Id: str | None
    Certificate: bytes
    SubCertificates: tuple[bytes, ...] | None = None


class ContractSignatureEncryptedPrivateKey(NamedTuple):
    """The encrypted private key of the contract certificate."""

    Id: str
    value: bytes


class DHpublickey(NamedTuple):
    """The ephemeral public key of the key agreement: an uncompressed point."""

    Id: str
    value: bytes


class EMAID(NamedTuple):
    """The element eMAID. As a fragment it has another form, see `codec.emaid_fragment`."""

    Id: str
    value: str


class CertificateInstallationRes(NamedTuple):
    """Body of the response."""

    ResponseCode: str
    SAProvisioningCertificateChain: CertificateChain
    ContractSignatureCertChain: CertificateChain
    ContractSignatureEncryptedPrivateKey: ContractSignatureEncryptedPrivateKey
    DHpublickey: DHpublickey
    eMAID: EMAID


class V2G_Message(NamedTuple):
    """A document."""

    Header: Header
    Body: CertificateInstallationReq | CertificateInstallationRes


# Namespaces of the XML schemas. A name is in the namespace of the type that declares it: SessionID, which the header's
# type declares, in MsgHeader; RootCertificateID, which a list's type declares, in MsgDataTypes. The attributes of
# XML Signature are in no namespace.
_MESSAGES, _HEADERS, _BODIES, TYPES = (
    f"urn:iso:15118:2:2013:{name}" for name in ("MsgDef", "MsgHeader", "MsgBody", "MsgDataTypes")
)
XML_NAMESPACES = {"v2g": _MESSAGES, "header": _HEADERS, "body": _BODIES, "types": TYPES, "ds": DSIG}


def _type(name: str) -> str:
    return f"{{{TYPES}}}{name}"


SESSION_ID = hexadecimal(8, _type("sessionIDType"))
CERTIFICATE = binary(800, _type("certificateType"))
MAX_ROOTS = 20

_NOTIFICATION = ElementType(
    _type("NotificationType"),
    Notification,
    one("FaultCode", enumeration(FAULT_CODES, _type("faultCodeType"))),
    one("FaultMsg", text(64, _type("faultMsgType")), optional=True),
)
_HEADER = ElementType(
    f"{{{_HEADERS}}}MessageHeaderType",
    Header,
    # A provisioning service knows no session and leaves the element out in XML. The pool replaces its value.
    one("SessionID", SESSION_ID, if_absent=b"\0"),
    one("Notification", _NOTIFICATION, optional=True),
    one("Signature", SIGNATURE, optional=True, namespace=DSIG),
)
ISSUER_SERIAL = ElementType(
    f"{{{DSIG}}}X509IssuerSerialType",
    X509IssuerSerial,
    one("X509IssuerName", TEXT_VALUE),
    one("X509SerialNumber", INTEGER),
)
_REQ = ElementType(
    f"{{{_BODIES}}}CertificateInstallationReqType",
    CertificateInstallationReq,
    attribute("Id"),
    one("OEMProvisioningCert", CERTIFICATE),
    one(
        "ListOfRootCertificateIDs",
        wrapper(_type("ListOfRootCertificateIDsType"), "RootCertificateID", ISSUER_SERIAL, MAX_ROOTS),
    ),
    positioned=True,
)
_CHAIN = ElementType(
    _type("CertificateChainType"),
    CertificateChain,
    attribute("Id", optional=True),
    one("Certificate", CERTIFICATE),
    one("SubCertificates", wrapper(_type("SubCertificatesType"), "Certificate", CERTIFICATE, 4), optional=True),
    positioned=True,
)


def _with_id(cls: type[NamedTuple], kind: SimpleType) -> ElementType:
    """An element with an Id and text. kind: type of the text, with the name of the element's type."""
    return ElementType(kind.name, cls, attribute("Id"), content(kind), positioned=True)


_KEY = _with_id(ContractSignatureEncryptedPrivateKey, binary(48, _type("ContractSignatureEncryptedPrivateKeyType")))
_DH = _with_id(DHpublickey, binary(65, _type("DiffieHellmanPublickeyType")))
_EMAID = _with_id(EMAID, text(15, _type("EMAIDType")))
_RES = ElementType(
    f"{{{_BODIES}}}CertificateInstallationResType",
    CertificateInstallationRes,
    one("ResponseCode", enumeration(RESPONSE_CODES, _type("responseCodeType"))),
    one("SAProvisioningCertificateChain", _CHAIN),
    one("ContractSignatureCertChain", _CHAIN),
    one("ContractSignatureEncryptedPrivateKey", _KEY),
    one("DHpublickey", _DH),
    one("eMAID", _EMAID),
)
# A body contains one of 35 messages, or none, which takes a code as well. Two of them are supported.
_BODY = ElementType(
    f"{{{_BODIES}}}BodyType",
    None,
    one_of(
        *[("another message", None)] * 5,
        ("CertificateInstallationReq", _REQ),
        ("CertificateInstallationRes", _RES),
        *[("another message", None)] * 28,
        ("an empty body", None),
    ),
)
MESSAGE = ElementType(f"{{{_MESSAGES}}}", V2G_Message, one("Header", _HEADER), one("Body", _BODY))

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
