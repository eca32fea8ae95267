"""The simple types of the messages with their JSON and XML forms, and short constructors for declarations.

`name` is the name of a type in its XML schema, as "{namespace}name".
"""

from __future__ import annotations

import binascii
import re
from base64 import b64encode
from typing import Any

from ccp.exi import bits
from ccp.exi.bits import CodecError
from ccp.exi.schema import ATTRIBUTE, ELEMENT, REFUSED, TEXT, Alternative, ElementType, Particle, SimpleType

_DECIMAL = re.compile(r"-?[0-9]{1,100}", re.ASCII)
# Possessive, so that it takes linear time: the zeros of a text that does not match are read once.
_SIGNED_DECIMAL = re.compile(r"([+-]?)(0*+)([0-9]{0,100})", re.ASCII)
_XML_WHITE_SPACE = " \t\n\r"
_WITHOUT_WHITE_SPACE = str.maketrans("", "", _XML_WHITE_SPACE)
_WHITE_SPACE = re.compile("[ \t\n\r]+")
_XSD = "{http://www.w3.org/2001/XMLSchema}"


def _same(value: Any) -> Any:
    return value


def _text(value: Any, limit: int) -> str:
    if type(value) is not str:
        raise CodecError("a string expected")
    return value


def _number(value: Any, limit: int) -> int:
    """A JSON integer, or a string of decimal digits: some JSON libraries lose precision beyond 53 or 64 bits."""
    if type(value) is str and _DECIMAL.fullmatch(value):
        return int(value)
    if type(value) is not int:
        raise CodecError("an integer expected")
    return value


def _hex(value: Any, limit: int) -> bytes:
    try:
        return binascii.unhexlify(_text(value, 0))
    except ValueError:
        raise CodecError("hexadecimal digits expected") from None


def _base64(value: Any, limit: int) -> bytes:
    try:
        return binascii.a2b_base64(_text(value, 0), strict_mode=True)
    except ValueError:
        raise CodecError("Base64 expected") from None


# Texts of XML documents. White space as the facet whiteSpace of the type says: `preserve` for xs:string and its
# enumerations, `collapse` for all other types. Source: W3C XML Schema Part 2, clause 4.3.6.


def _collapsed(value: str) -> str:
    return _WHITE_SPACE.sub(" ", value.strip(_XML_WHITE_SPACE))


def _decimal(value: str) -> int:
    match = _SIGNED_DECIMAL.fullmatch(value.strip(_XML_WHITE_SPACE))
    if match is None or not (match[2] or match[3]):
        raise CodecError("an integer of at most 100 digits expected")
    number = int(match[3] or "0")
    return -number if match[1] == "-" else number


def _hex_digits(value: str) -> bytes:
    return _hex(value.strip(_XML_WHITE_SPACE), 0)


def _spaced_base64(value: str) -> bytes:
    """Base64, which may have white space between its characters."""
    compact = value.translate(_WITHOUT_WHITE_SPACE)
    found = _base64(compact, 0)
    # binascii accepts superfluous padding and bits beyond the last byte; encoding the result again detects both.
    if binascii.b2a_base64(found, newline=False) != compact.encode("ascii"):
        raise CodecError("Base64 expected")
    return found


def binary(limit: int, name: str) -> SimpleType:
    """base64Binary of at most `limit` bytes. The limit holds when reading too: receivers have buffers of that size."""
    return SimpleType(
        bits.read_binary, bits.pack_binary, lambda value: b64encode(value).decode("ascii"), _base64, _spaced_base64,
        name, limit, b"",
    )  # fmt: skip


def hexadecimal(limit: int, name: str) -> SimpleType:
    """hexBinary of at most `limit` bytes."""
    return SimpleType(
        bits.read_binary, bits.pack_binary, lambda value: value.hex().upper(), _hex, _hex_digits, name, limit, b""
    )


def text(limit: int = bits.MAX_TEXT_CHARACTERS, name: str = _XSD + "string") -> SimpleType:
    """A string of at most `limit` characters when written. Reading accepts more, since no buffer here depends on it."""
    return SimpleType(bits.read_text, bits.pack_text, _same, _text, _same, name, limit, "")


def enumeration(values: tuple[str, ...], name: str) -> SimpleType:
    """An enumeration. values: in the order of the schema."""
    return SimpleType(bits.read_enumeration, bits.pack_enumeration, _same, _text, _same, name, values)


TEXT_VALUE = text()
# xs:ID and xs:anyURI, which occur in attributes only.
TOKEN = TEXT_VALUE._replace(from_text=_collapsed)
NAME = TOKEN._replace(pack=bits.pack_name)
INTEGER = SimpleType(
    bits.read_integer, bits.pack_integer, _same, _number, _decimal, _XSD + "integer", bits.MAX_INTEGER_BYTES
)
UNSIGNED_LONG = SimpleType(
    bits.read_unsigned_long, bits.pack_unsigned_long, _same, _number, _decimal, _XSD + "unsignedLong", 2**64 - 1
)
UNSIGNED_BYTE = SimpleType(
    bits.read_unsigned_byte, bits.pack_unsigned_byte, _same, _number, _decimal, _XSD + "unsignedByte", 255
)


def attribute(name: str, *, optional: bool = False, kind: SimpleType = TOKEN) -> Particle:
    """An attribute."""
    return Particle(ATTRIBUTE, (Alternative(name, kind),), optional)


def content(kind: SimpleType) -> Particle:
    """The text of an element, in the slot `value`."""
    return Particle(TEXT, (Alternative("value", kind),))


def one(
    name: str,
    kind: SimpleType | ElementType,
    *,
    optional: bool = False,
    namespace: str | None = None,
    if_absent: Any = None,
) -> Particle:
    """A single element. namespace, if_absent: see `Particle`."""
    return Particle(ELEMENT, (Alternative(name, kind),), optional=optional, namespace=namespace, if_absent=if_absent)


def many(
    name: str, kind: SimpleType | ElementType, max_items: int, *, optional: bool = False, own_limit: bool = False
) -> Particle:
    """A repeated element. own_limit: `max_items` is this codec's limit, not the schema's."""
    return Particle(ELEMENT, (Alternative(name, kind),), optional, max_items, own_limit)


def one_of(*alternatives: tuple[str, SimpleType | ElementType | None]) -> Particle:
    """A choice of elements; those without a type take a code but are not supported."""
    return Particle(ELEMENT, tuple(Alternative(*alternative) for alternative in alternatives))


def refused(name: str) -> Particle:
    """An optional element that takes a code but is not supported."""
    return Particle(REFUSED, (Alternative(name, None),), optional=True)


def wrapper(type_name: str, name: str, kind: SimpleType | ElementType, max_items: int) -> ElementType:
    """An element that only contains a list. Its value is the tuple of the items."""
    return ElementType(type_name, None, many(name, kind, max_items))
