"""Distinguished names in canonical form, so that they can be compared by value.

Two names are equal when their attributes are, in the same order, whatever string types and letter case they are written
in: an issuer in UTF8String and the CA's subject in PrintableString are one name. The canonical form is OpenSSL's, for
which RFC 5280 clause 7.1 (RFC 4518 in outline) is the model: of directory strings letters of ASCII become small, blanks
around a value go and several inside become one, and all are written as UTF8String; any other value counts byte by byte.
"""

from __future__ import annotations

from typing import Final

from ccp.x509 import der
from ccp.x509.der import DERError

_ENCODINGS: Final = {
    0x0C: "utf-8",  # UTF8String
    0x13: "latin-1",  # PrintableString; OpenSSL reads these three byte by byte, whatever they may hold
    0x14: "latin-1",  # T61String
    0x16: "latin-1",  # IA5String
    0x1C: "utf-32-be",  # UniversalString
    0x1E: "utf-16-be",  # BMPString
}
# What else may stand in a name, compared byte by byte: BIT STRING, NumericString, SEQUENCE. OpenSSL reads no other.
_OTHERS: Final = frozenset({der.BIT_STRING, 0x12, der.SEQUENCE})
_BLANKS: Final = " \t\n\v\f\r"
_LOWER: Final = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}

# By the name's bytes. The names of CAs are few; those of leaves are never asked for.
_KNOWN: Final[dict[bytes, bytes]] = {}
_MAX_KNOWN: Final = 4096
_LONGEST_KNOWN: Final = 1024  # Bytes. Names of certificates in OCSP responses may have a hundred thousand.


def canonical_name(name: bytes) -> bytes:
    """A name in canonical form: for comparison only, and as DER contents like the name itself.

    name: the contents of a Name (RDNSequence), DER. Raises DERError where it cannot be read.
    """
    known = _KNOWN.get(name)
    if known is None:
        known = b"".join(_relative(name, one) for one in der.read_elements(name))
        if len(name) <= _LONGEST_KNOWN:
            if len(_KNOWN) >= _MAX_KNOWN:
                _KNOWN.clear()
            _KNOWN[name] = known
    return known


def same_name(one: bytes, other: bytes) -> bool:
    """Whether two names are the same by value; both DER contents. Raises DERError."""
    return one == other or canonical_name(one) == canonical_name(other)


def fold(value: str) -> str:
    """A value of a name as it is compared: blanks around it removed, several inside made one, ASCII in small letters.

    Other letters keep their case, as in OpenSSL: folding them is where readers disagree.
    """
    for blank in _BLANKS[1:]:
        value = value.replace(blank, " ")
    return " ".join(part for part in value.split(" ") if part).translate(_LOWER)


def _relative(name: bytes, found: der.Element) -> bytes:
    """One RelativeDistinguishedName; its attributes are a set, so their order does not count."""
    if found.tag != der.SET:
        raise DERError("a name is not a sequence of sets")
    attributes = sorted(_attribute(name, one) for one in der.read_children(name, found))
    content = b"".join(attributes)
    return der.encode_header(der.SET, len(content)) + content


def _attribute(name: bytes, found: der.Element) -> bytes:
    members = der.read_children(name, found) if found.tag == der.SEQUENCE else []
    if len(members) != 2 or members[0].tag != der.OID:
        raise DERError("an attribute of a name is not a type and a value")
    kind, value = members
    encoded = name[value.at : value.end]
    if value.tag in _ENCODINGS:
        try:
            text = name[value.start : value.end].decode(_ENCODINGS[value.tag])
            folded = fold(text).encode()
        except UnicodeError as exc:
            raise DERError("an attribute of a name is not in its own character set") from exc
        if value.tag == 0x1E and any(letter > "\uffff" for letter in text):
            raise DERError("an attribute of a name is not in its own character set")
        encoded = der.encode_header(0x0C, len(folded)) + folded
    elif value.tag not in _OTHERS or (
        value.tag == der.BIT_STRING and not _is_bit_string(name[value.start : value.end])
    ):
        raise DERError("an attribute of a name is of a type that names do not have")
    content = name[kind.at : kind.end] + encoded
    return der.encode_header(der.SEQUENCE, len(content)) + content


def _is_bit_string(content: bytes) -> bool:
    """Whether it begins with a number of unused bits that there can be."""
    return bool(content) and content[0] <= (7 if len(content) > 1 else 0)
