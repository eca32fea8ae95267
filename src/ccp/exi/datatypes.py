"""The simple types of the messages, each with its form in JSON, and short names for the parts of a declaration."""

from __future__ import annotations

import binascii
import re
from base64 import b64encode
from typing import Any

from ccp.exi import bits
from ccp.exi.bits import CodecError
from ccp.exi.grammar import ATTRIBUTE, ELEMENT, REFUSED, TEXT, Alternative, ElementType, Particle, SimpleType

_DECIMAL = re.compile(r"-?[0-9]{1,100}", re.ASCII)


def _same(value: Any) -> Any:
    return value


def _text(value: Any, limit: int) -> str:
    if type(value) is not str:
        raise CodecError("a string expected")
    return value


def _number(value: Any, limit: int) -> int:
    """A JSON integer, or one in decimal digits, which is how numbers beyond 64 bits survive careless JSON libraries."""
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


def binary(limit: int) -> SimpleType:
    """base64Binary of at most `limit` octets. The facets hold when reading too: receivers have buffers of that size."""
    return SimpleType(
        bits.read_binary, bits.pack_binary, lambda value: b64encode(value).decode("ascii"), _base64, limit, b""
    )


def hexadecimal(limit: int) -> SimpleType:
    """hexBinary of at most `limit` octets."""
    return SimpleType(bits.read_binary, bits.pack_binary, lambda value: value.hex().upper(), _hex, limit, b"")


def text(limit: int = bits.MAX_TEXT_CHARACTERS) -> SimpleType:
    """A string of at most `limit` characters when written. Reading takes more: a long text harms no buffer of ours."""
    return SimpleType(bits.read_text, bits.pack_text, _same, _text, limit, "")


def enumeration(names: tuple[str, ...]) -> SimpleType:
    return SimpleType(bits.read_enumeration, bits.pack_enumeration, _same, _text, names)


TEXT_VALUE = text()
NAME = TEXT_VALUE._replace(pack=bits.pack_name)
INTEGER = SimpleType(bits.read_integer, bits.pack_integer, _same, _number, bits.MAX_INTEGER_BYTES)
UNSIGNED_LONG = SimpleType(bits.read_unsigned_long, bits.pack_unsigned_long, _same, _number, 2**64 - 1)
UNSIGNED_BYTE = SimpleType(bits.read_unsigned_byte, bits.pack_unsigned_byte, _same, _number, 255)


def attribute(name: str, *, optional: bool = False, kind: SimpleType = TEXT_VALUE) -> Particle:
    return Particle(ATTRIBUTE, (Alternative(name, kind),), optional)


def content(leaf: SimpleType) -> Particle:
    """The text of an element, in the slot `value`."""
    return Particle(TEXT, (Alternative("value", leaf),))


def one(name: str, kind: SimpleType | ElementType, *, optional: bool = False) -> Particle:
    return Particle(ELEMENT, (Alternative(name, kind),), optional)


def many(
    name: str, kind: SimpleType | ElementType, most: int, *, optional: bool = False, ours: bool = False
) -> Particle:
    return Particle(ELEMENT, (Alternative(name, kind),), optional, most, ours)


def one_of(*options: tuple[str, SimpleType | ElementType | None]) -> Particle:
    return Particle(ELEMENT, tuple(Alternative(*option) for option in options))


def refused(name: str) -> Particle:
    """An optional element that takes a code but is not supported."""
    return Particle(REFUSED, (Alternative(name, None),), optional=True)


def wrapper(name: str, kind: SimpleType | ElementType, most: int) -> ElementType:
    """An element that only holds a list; its value is the tuple of the items."""
    return ElementType(None, many(name, kind, most))
