"""XML Signature elements as ISO 15118 uses them.

The conventions are those of `iso2`. `Transforms` is the tuple of its `Transform`s. KeyInfo, Object and elements of
other namespaces are refused.
"""

from __future__ import annotations

from typing import NamedTuple

from ccp.exi.bits import MAX_REFERENCES, MAX_SIGNATURE_BYTES, MAX_TRANSFORMS, MAX_XPATHS
from ccp.exi.datatypes import INTEGER, NAME, TEXT_VALUE, attribute, binary, content, many, one, refused
from ccp.exi.schema import ElementType


class CanonicalizationMethod(NamedTuple):
    """Algorithm: its URI."""

    Algorithm: str


class SignatureMethod(NamedTuple):
    """Algorithm: its URI."""

    Algorithm: str
    HMACOutputLength: int | None = None


class Transform(NamedTuple):
    """Algorithm: its URI."""

    Algorithm: str
    XPath: tuple[str, ...] = ()


class DigestMethod(NamedTuple):
    """Algorithm: its URI."""

    Algorithm: str


class Reference(NamedTuple):
    """A reference to a signed element. URI: "#" and its Id."""

    Id: str | None
    Type: str | None
    URI: str | None
    Transforms: tuple[Transform, ...] | None
    DigestMethod: DigestMethod
    DigestValue: bytes


class SignedInfo(NamedTuple):
    """What SignatureValue signs."""

    Id: str | None
    CanonicalizationMethod: CanonicalizationMethod
    SignatureMethod: SignatureMethod
    Reference: tuple[Reference, ...]


class SignatureValue(NamedTuple):
    """The signature value. ECDSA: r‖s, 64 bytes (P-256) or 132 (P-521). Ed448: 114 bytes."""

    Id: str | None
    value: bytes


class Signature(NamedTuple):
    """The signature of a message, in its header."""

    Id: str | None
    SignedInfo: SignedInfo
    SignatureValue: SignatureValue


XML_NAMESPACE = "http://www.w3.org/2000/09/xmldsig#"


def _type(name: str) -> str:
    return f"{{{XML_NAMESPACE}}}{name}"


_ALGORITHM = attribute("Algorithm", kind=NAME)
_ID = attribute("Id", optional=True)
_ANY = refused("a foreign element")

_TRANSFORM = ElementType(
    _type("TransformType"),
    Transform,
    _ALGORITHM,
    many("XPath", TEXT_VALUE, MAX_XPATHS, optional=True, own_limit=True),
    _ANY,
    mixed=True,
)
_REFERENCE = ElementType(
    _type("ReferenceType"),
    Reference,
    _ID,
    attribute("Type", optional=True),
    attribute("URI", optional=True),
    one(
        "Transforms",
        ElementType(_type("TransformsType"), None, many("Transform", _TRANSFORM, MAX_TRANSFORMS, own_limit=True)),
        optional=True,
    ),
    one("DigestMethod", ElementType(_type("DigestMethodType"), DigestMethod, _ALGORITHM, _ANY, mixed=True)),
    one("DigestValue", binary(MAX_SIGNATURE_BYTES, _type("DigestValueType"))),
)
SIGNED_INFO = ElementType(
    _type("SignedInfoType"),
    SignedInfo,
    _ID,
    one(
        "CanonicalizationMethod",
        ElementType(_type("CanonicalizationMethodType"), CanonicalizationMethod, _ALGORITHM, _ANY, mixed=True),
    ),
    one(
        "SignatureMethod",
        ElementType(
            _type("SignatureMethodType"),
            SignatureMethod,
            _ALGORITHM,
            one("HMACOutputLength", INTEGER._replace(name=_type("HMACOutputLengthType")), optional=True),
            _ANY,
            mixed=True,
        ),
    ),
    many("Reference", _REFERENCE, MAX_REFERENCES, own_limit=True),
    positioned=True,
)
_VALUE = _type("SignatureValueType")
SIGNATURE = ElementType(
    _type("SignatureType"),
    Signature,
    _ID,
    one("SignedInfo", SIGNED_INFO),
    one("SignatureValue", ElementType(_VALUE, SignatureValue, _ID, content(binary(MAX_SIGNATURE_BYTES, _VALUE)))),
    refused("KeyInfo"),
    refused("Object"),
)
# Fragments of the stand-alone schema: width of codes, code of the end, and code and type of each element.
FRAGMENT_WIDTH, FRAGMENT_END = 6, 46
FRAGMENTS: dict[str, tuple[int, ElementType]] = {"SignedInfo": (32, SIGNED_INFO), "Signature": (27, SIGNATURE)}
