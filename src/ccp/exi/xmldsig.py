"""XML signature elements as ISO 15118 uses them.

Fields stand in document order, attributes first, as in all message classes. `Transforms` is the tuple of its
`Transform`s. KeyInfo, Object and foreign elements are refused.
"""

from __future__ import annotations

from typing import NamedTuple

from ccp.exi.bits import REFERENCES, SIGNATURE_OCTETS, TRANSFORMS, XPATHS
from ccp.exi.datatypes import INTEGER, NAME, TEXT_VALUE, attribute, binary, content, many, one, refused
from ccp.exi.grammar import Record


class CanonicalizationMethod(NamedTuple):
    Algorithm: str


class SignatureMethod(NamedTuple):
    Algorithm: str
    HMACOutputLength: int | None = None


class Transform(NamedTuple):
    Algorithm: str
    XPath: tuple[str, ...] = ()


class DigestMethod(NamedTuple):
    Algorithm: str


class Reference(NamedTuple):
    Id: str | None
    Type: str | None
    URI: str | None
    Transforms: tuple[Transform, ...] | None
    DigestMethod: DigestMethod
    DigestValue: bytes


class SignedInfo(NamedTuple):
    Id: str | None
    CanonicalizationMethod: CanonicalizationMethod
    SignatureMethod: SignatureMethod
    Reference: tuple[Reference, ...]


class SignatureValue(NamedTuple):
    """value: for ECDSA r‖s, 64 octets (P-256) or 132 (P-521); for Ed448 114."""

    Id: str | None
    value: bytes


class Signature(NamedTuple):
    Id: str | None
    SignedInfo: SignedInfo
    SignatureValue: SignatureValue


_ALGORITHM = attribute("Algorithm", kind=NAME)
_ID = attribute("Id", optional=True)
_ANY = refused("a foreign element")

_TRANSFORM = Record(
    Transform, _ALGORITHM, many("XPath", TEXT_VALUE, XPATHS, optional=True, ours=True), _ANY, mixed=True
)
_REFERENCE = Record(
    Reference,
    _ID,
    attribute("Type", optional=True),
    attribute("URI", optional=True),
    one("Transforms", Record(None, many("Transform", _TRANSFORM, TRANSFORMS, ours=True)), optional=True),
    one("DigestMethod", Record(DigestMethod, _ALGORITHM, _ANY, mixed=True)),
    one("DigestValue", binary(SIGNATURE_OCTETS)),
)
SIGNED_INFO = Record(
    SignedInfo,
    _ID,
    one("CanonicalizationMethod", Record(CanonicalizationMethod, _ALGORITHM, _ANY, mixed=True)),
    one(
        "SignatureMethod",
        Record(SignatureMethod, _ALGORITHM, one("HMACOutputLength", INTEGER, optional=True), _ANY, mixed=True),
    ),
    many("Reference", _REFERENCE, REFERENCES, ours=True),
    mark=True,
)
SIGNATURE = Record(
    Signature,
    _ID,
    one("SignedInfo", SIGNED_INFO),
    one("SignatureValue", Record(SignatureValue, _ID, content(binary(SIGNATURE_OCTETS)))),
    refused("KeyInfo"),
    refused("Object"),
)
# Fragments of the stand-alone schema: width, code of the end, and code and type of each element.
FRAGMENT_WIDTH, FRAGMENT_END = 6, 46
FRAGMENTS: dict[str, tuple[int, Record]] = {"SignedInfo": (32, SIGNED_INFO), "Signature": (27, SIGNATURE)}
