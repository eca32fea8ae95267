"""Distinguished names in canonical form, so that they can be compared by value.

Two names are equal if their attributes are equal and in the same order, independent of string type and letter case: an
issuer in UTF8String matches the CA's subject in PrintableString. The canonical form is that of OpenSSL, after RFC 5280
clause 7.1: in directory strings, ASCII letters become lower case, surrounding blanks are removed, repeated blanks
become one, and the result is encoded as UTF8String. Any other value is compared byte by byte.
"""

from __future__ import annotations

from typing import Final

from ccp.x509 import der
from ccp.x509.der import DERError

_ENCODINGS: Final = {
    0x0C: "utf-8",  # UTF8String
    0x13: "latin-1",  # PrintableString; OpenSSL decodes these three byte by byte, without checking them
    0x14: "latin-1",  # T61String
    0x16: "latin-1",  # IA5String
    0x1C: "utf-32-be",  # UniversalString
    0x1E: "utf-16-be",  # BMPString
}
# Other types in a name, compared byte by byte: BIT STRING, NumericString, SEQUENCE. OpenSSL accepts no further ones.
_OTHERS: Final = frozenset({der.BIT_STRING, 0x12, der.SEQUENCE})
_BLANKS: Final = " \t\n\v\f\r"
_LOWER: Final = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}

# By encoded name. There are few names of CAs; those of leaves are not compared.
_KNOWN: Final[dict[bytes, bytes]] = {}
_MAX_KNOWN: Final = 4096
_MAX_KNOWN_BYTES: Final = 1024  # Names in OCSP responses may have a hundred thousand bytes.


def canonical_name(name: bytes) -> bytes:
    """The canonical form of a name, for comparison only.

    name: DER contents of a Name (RDNSequence); so is the result. Raises DERError if it cannot be read.
    """
    known = _KNOWN.get(name)
    if known is None:
        known = b"".join(_relative(name, one) for one in der.read_elements(name))
        if len(name) <= _MAX_KNOWN_BYTES:
            if len(_KNOWN) >= _MAX_KNOWN:
                _KNOWN.clear()
            _KNOWN[name] = known
    return known


def same_name(one: bytes, other: bytes) -> bool:
    """Whether two names (DER contents) are equal by value. Raises DERError."""
    return one == other or canonical_name(one) == canonical_name(other)


def fold(value: str) -> str:
    """The canonical form of a string in a name: surrounding and repeated blanks removed, ASCII letters in lower case.

    Other letters keep their case, as in OpenSSL, because implementations disagree on folding them.
    """
    for blank in _BLANKS[1:]:
        value = value.replace(blank, " ")
    return " ".join(part for part in value.split(" ") if part).translate(_LOWER)


def _relative(name: bytes, found: der.Element) -> bytes:
    """One RelativeDistinguishedName. Its attributes are a set, so their order does not matter."""
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
    """Whether the number of unused bits is possible."""
    return bool(content) and content[0] <= (7 if len(content) > 1 else 0)
