"""The simple types of the messages with their JSON forms, and short constructors for declarations."""

from __future__ import annotations

import binascii
import re
from base64 import b64encode
from typing import Any

from ccp.exi import bits
from ccp.exi.bits import CodecError
from ccp.exi.schema import ATTRIBUTE, ELEMENT, REFUSED, TEXT, Alternative, ElementType, Particle, SimpleType

_DECIMAL = re.compile(r"-?[0-9]{1,100}", re.ASCII)


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


def binary(limit: int) -> SimpleType:
    """base64Binary of at most `limit` bytes. The limit holds when reading too: receivers have buffers of that size."""
    return SimpleType(
        bits.read_binary, bits.pack_binary, lambda value: b64encode(value).decode("ascii"), _base64, limit, b""
    )


def hexadecimal(limit: int) -> SimpleType:
    """hexBinary of at most `limit` bytes."""
    return SimpleType(bits.read_binary, bits.pack_binary, lambda value: value.hex().upper(), _hex, limit, b"")


def text(limit: int = bits.MAX_TEXT_CHARACTERS) -> SimpleType:
    """A string of at most `limit` characters when written. Reading accepts more, since no buffer here depends on it."""
    return SimpleType(bits.read_text, bits.pack_text, _same, _text, limit, "")


def enumeration(names: tuple[str, ...]) -> SimpleType:
    """An enumeration. names: its values in the order of the schema."""
    return SimpleType(bits.read_enumeration, bits.pack_enumeration, _same, _text, names)


TEXT_VALUE = text()
NAME = TEXT_VALUE._replace(pack=bits.pack_name)
INTEGER = SimpleType(bits.read_integer, bits.pack_integer, _same, _number, bits.MAX_INTEGER_BYTES)
UNSIGNED_LONG = SimpleType(bits.read_unsigned_long, bits.pack_unsigned_long, _same, _number, 2**64 - 1)
UNSIGNED_BYTE = SimpleType(bits.read_unsigned_byte, bits.pack_unsigned_byte, _same, _number, 255)


def attribute(name: str, *, optional: bool = False, kind: SimpleType = TEXT_VALUE) -> Particle:
    """An attribute."""
    return Particle(ATTRIBUTE, (Alternative(name, kind),), optional)


def content(kind: SimpleType) -> Particle:
    """The text of an element, in the slot `value`."""
    return Particle(TEXT, (Alternative("value", kind),))


def one(name: str, kind: SimpleType | ElementType, *, optional: bool = False) -> Particle:
    """A single element."""
    return Particle(ELEMENT, (Alternative(name, kind),), optional)


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


def wrapper(name: str, kind: SimpleType | ElementType, max_items: int) -> ElementType:
    """An element that only contains a list. Its value is the tuple of the items."""
    return ElementType(None, many(name, kind, max_items))
