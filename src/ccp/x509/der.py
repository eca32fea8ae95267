"""A small DER reader for what `cryptography` does not expose: names by value, unused bits, reasons of refusals.

It is total over any bytes: it returns elements or raises `DERError`. It does not interpret the elements.
"""

from __future__ import annotations

from typing import Final, NamedTuple

BOOLEAN: Final = 0x01
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
OID: Final = 0x06
SEQUENCE: Final = 0x30
SET: Final = 0x31

_CONSTRUCTED: Final = 0x20
_FALSE: Final = bytes.fromhex("010100")
_MAX_ELEMENTS: Final = 10_000  # Read to explain a refusal; a certificate has some hundred.


class DERError(ValueError):
    """The bytes are not valid DER."""


class Element(NamedTuple):
    """One element of an encoding. at: offset of its tag. start, end: offsets of its content."""

    tag: int
    at: int
    start: int
    end: int


def read_element(encoded: bytes, at: int, end: int | None = None) -> Element:
    """The element at an offset, which ends at `end` or before (default: the end of the bytes). Raises DERError.

    Only tags of one byte, and definite lengths in their shortest form (X.690 clauses 8.1.2 and 10.1).
    """
    end = len(encoded) if end is None else end
    if at + 2 > end:
        raise DERError("an element is cut off")
    tag, length, start = encoded[at], encoded[at + 1], at + 2
    if tag & 0x1F == 0x1F:
        raise DERError("a tag of several bytes")
    if length & 0x80:
        count = length & 0x7F
        start += count
        length = int.from_bytes(encoded[at + 2 : start], "big")
        if not 1 <= count <= 4 or start > end or length < (0x80 if count == 1 else 1 << 8 * (count - 1)):
            raise DERError("a length that is not in its shortest form")
    if start + length > end:
        raise DERError("an element is longer than its parent")
    return Element(tag, at, start, start + length)


def read_elements(encoded: bytes, at: int = 0, end: int | None = None) -> list[Element]:
    """All elements between two offsets. Raises DERError."""
    end = len(encoded) if end is None else end
    found = []
    while at < end:
        one = read_element(encoded, at, end)
        found.append(one)
        at = one.end
    return found


def read_children(encoded: bytes, parent: Element) -> list[Element]:
    """The elements inside an element. Raises DERError."""
    return read_elements(encoded, parent.start, parent.end)


def encode_header(tag: int, length: int) -> bytes:
    """The encoding of tag and length, the length in its shortest form."""
    if length < 0x80:
        return bytes((tag, length))
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size


def signature_has_unused_bits(encoded: bytes) -> bool:
    """Whether the BIT STRING of a SIGNED structure (certificate, CRL, BasicOCSPResponse) has unused bits.

    A signature is whole bytes. A reader that ignores the number of unused bits accepts several encodings of one
    signature, which other readers refuse. Raises DERError.
    Source: X.690 clause 11.2; RFC 5280 clauses 4.1.1.3 and 5.1.1.3.
    """
    members = read_children(encoded, read_element(encoded, 0))
    if len(members) < 3 or members[2].tag != BIT_STRING or members[2].start == members[2].end:
        raise DERError("no signature")
    return encoded[members[2].start] != 0


def explain_rejection(encoded: bytes, expected: str) -> str:
    """Why a parser refused bytes, as far as can be determined: the continuation of "These bytes are".

    expected: what they should be, such as "an X.509 certificate". Source: X.690 clauses 10.1 and 11.5.
    """
    if b"-----BEGIN" in encoded:
        return f"not {expected} in DER but PEM"
    try:
        whole = read_element(encoded, 0)
        if _encodes_critical_false(encoded, whole):
            return "not DER: critical is FALSE explicitly"
    except DERError:  # Not even an element.
        return f"not {expected}"
    if whole.end < len(encoded):
        return f"not {expected}: {len(encoded) - whole.end} bytes follow its end"
    return f"not {expected}"


def _encodes_critical_false(encoded: bytes, whole: Element) -> bool:
    """Whether an extension encodes the default value of `critical`. Raises DERError."""
    pending, left = [whole], _MAX_ELEMENTS
    while pending and left > 0:
        members = read_children(encoded, pending.pop())
        left -= len(members)
        if [member.tag for member in members] == [OID, BOOLEAN, OCTET_STRING]:
            if encoded[members[1].at : members[1].end] == _FALSE:
                return True
        else:
            pending += [member for member in members if member.tag & _CONSTRUCTED]
    return False


def content_bounds(encoded: bytes, at: int) -> tuple[int, int]:
    """Start and end of the content of the element at an offset. Only for bytes that a complete parser has accepted."""
    length, start = encoded[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, start = int.from_bytes(encoded[start : start + count], "big"), start + count
    return start, start + length


def child_bounds(encoded: bytes, at: int, end: int) -> list[tuple[int, int, int]]:
    """Of each element between two offsets: its start, and start and end of its content.

    Only for bytes that a complete parser has accepted; faster than `read_elements`.
    """
    found = []
    while at < end:
        length, start = encoded[at + 1], at + 2
        if length & 0x80:
            count = length & 0x7F
            length, start = int.from_bytes(encoded[start : start + count], "big"), start + count
        found.append((at, start, start + length))
        at = start + length
    return found
