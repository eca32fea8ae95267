"""DER read where `cryptography` does not give what is needed: names by value, unused bits, why bytes are refused.

A small reader over tag and length, total over any bytes: it gives elements or raises `DERError`. It decides nothing
about what the elements mean.
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
_MAX_ELEMENTS: Final = 10_000  # Looked at to explain a failure; a certificate has some hundred.


class DERError(ValueError):
    """The bytes are not DER where DER is read."""


class Element(NamedTuple):
    """One element of an encoding. at: where its tag stands; start, end: its content."""

    tag: int
    at: int
    start: int
    end: int


def read_element(encoded: bytes, at: int, end: int | None = None) -> Element:
    """The element that begins at a place and ends before another one (the end of the bytes). Raises DERError.

    Tags of one byte only, definite lengths in their shortest form (X.690 clauses 8.1.2 and 10.1).
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
        raise DERError("an element is longer than what it stands in")
    return Element(tag, at, start, start + length)


def read_elements(encoded: bytes, at: int = 0, end: int | None = None) -> list[Element]:
    """All elements between two places. Raises DERError."""
    end = len(encoded) if end is None else end
    found = []
    while at < end:
        one = read_element(encoded, at, end)
        found.append(one)
        at = one.end
    return found


def read_children(encoded: bytes, parent: Element) -> list[Element]:
    """The elements inside of one. Raises DERError."""
    return read_elements(encoded, parent.start, parent.end)


def encode_header(tag: int, length: int) -> bytes:
    """Tag and length of an element, its length in the shortest form."""
    if length < 0x80:
        return bytes((tag, length))
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size


def signature_has_unused_bits(encoded: bytes) -> bool:
    """Whether the BIT STRING of a SIGNED structure (certificate, CRL, BasicOCSPResponse) claims unused bits.

    A signature is whole bytes. A reader that passes over the number of unused bits accepts several encodings of one
    signature, which others refuse. Raises DERError. Source: X.690 clause 11.2; RFC 5280 clauses 4.1.1.3 and 5.1.1.3.
    """
    members = read_children(encoded, read_element(encoded, 0))
    if len(members) < 3 or members[2].tag != BIT_STRING or members[2].start == members[2].end:
        raise DERError("no signature")
    return encoded[members[2].start] != 0


def explain_rejection(encoded: bytes, expected: str) -> str:
    """Why bytes that no parser accepted are refused, as far as it can be seen: what follows "These bytes are".

    expected: what they should be, such as "an X.509 certificate". Source: X.690 clauses 10.1 and 11.5.
    """
    if b"-----BEGIN" in encoded:
        return f"not {expected} in DER but PEM"
    try:
        whole = read_element(encoded, 0)
        if _encodes_critical_false(encoded, whole):
            return "not DER: critical is FALSE explicitly"
    except DERError:  # Not even the outlines of one.
        return f"not {expected}"
    if whole.end < len(encoded):
        return f"not {expected}: {len(encoded) - whole.end} bytes follow its end"
    return f"not {expected}"


def _encodes_critical_false(encoded: bytes, whole: Element) -> bool:
    """Whether an extension encodes the default of `critical`. Raises DERError."""
    waiting, left = [whole], _MAX_ELEMENTS
    while waiting and left > 0:
        members = read_children(encoded, waiting.pop())
        left -= len(members)
        if [one.tag for one in members] == [OID, BOOLEAN, OCTET_STRING]:
            if encoded[members[1].at : members[1].end] == _FALSE:
                return True
        else:
            waiting += [one for one in members if one.tag & _CONSTRUCTED]
    return False
