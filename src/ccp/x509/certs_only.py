"""PKCS#7 messages that contain nothing but certificates ("certs-only"), as EST servers send them.

`cryptography` reads the certificates of any PKCS#7 message, including signed content, and does not tell them apart.
So this module checks the structure itself. It reads DER, and the indefinite lengths of BER that some servers use, and
writes DER. Source: RFC 5652 clause 5; RFC 5272 clause 4.1; RFC 7030 clause 4.1.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from ccp.errors import ChainError
from ccp.x509.certificates import Certificate
from ccp.x509.der import OID, SEQUENCE, SET, encode_header

MAX_CERTIFICATES: Final = 32
"""A chain of this ecosystem has at most five; a server may list several generations of CAs."""

_INTEGER: Final = 0x02
_CONTEXT_0: Final = 0xA0
_CONTEXT_1: Final = 0xA1
_INDEFINITE: Final = 0x80
_END_OF_CONTENTS: Final = b"\0\0"
_MAX_DEPTH: Final = 12  # Of nested indefinite lengths; certificates, the deepest part, have definite ones.
_SIGNED_DATA: Final = bytes.fromhex("2a864886f70d010702")
_DATA: Final = bytes.fromhex("2a864886f70d010701")
_VERSION_1: Final = bytes.fromhex("020101")
_NOT: Final = "It is not a PKCS#7 message of certificates only"


class _Element(NamedTuple):
    """An element of a BER encoding. start, end: of its content. after: where the next element begins."""

    tag: int
    at: int
    start: int
    end: int
    after: int


def read_certs_only(encoded: bytes) -> tuple[Certificate, ...]:
    """Read a certs-only message: no signed content, no signature, at least one certificate. Keeps their order.

    encoded: DER or BER. Raises ChainError.
    """
    outer = _only(encoded, 0, len(encoded), SEQUENCE)
    kind, wrapper = _members(encoded, outer, OID, _CONTEXT_0)
    if encoded[kind.start : kind.end] != _SIGNED_DATA:
        raise ChainError(f"{_NOT}: it has another content type.")
    signed = _only(encoded, wrapper.start, wrapper.end, SEQUENCE)
    members = _elements(encoded, signed.start, signed.end)
    tags = [member.tag for member in members]
    optional = [tag for tag in tags[3:-1] if tag in (_CONTEXT_0, _CONTEXT_1)]
    if tags[:3] != [_INTEGER, SET, SEQUENCE] or tags[3:] != [*optional, SET] or len(set(optional)) < len(optional):
        raise ChainError(f"{_NOT}: its structure is not that of SignedData.")
    content = _elements(encoded, members[2].start, members[2].end)
    if len(content) != 1 or content[0].tag != OID or encoded[content[0].start : content[0].end] != _DATA:
        raise ChainError(f"{_NOT}: it has content.")
    if _elements(encoded, members[-1].start, members[-1].end):
        raise ChainError(f"{_NOT}: it has a signature.")
    found = [
        item
        for member in members[3:-1]
        if member.tag == _CONTEXT_0
        for item in _elements(encoded, member.start, member.end)
    ]
    if not found:
        raise ChainError(f"{_NOT}: it has no certificate.")
    if len(found) > MAX_CERTIFICATES:
        raise ChainError(f"It has more than {MAX_CERTIFICATES} certificates.")
    return tuple(Certificate.load(encoded[item.at : item.after]) for item in found)


def encode_certs_only(certificates: Iterable[Certificate]) -> bytes:
    """Write a certs-only message with the certificates in their order. Returns DER, but for that order (X.690 11.6)."""
    body = b"".join(certificate.der for certificate in certificates)
    signed = b"".join(
        (
            _VERSION_1,
            encode_header(SET, 0),
            _wrap(SEQUENCE, _wrap(OID, _DATA)),
            _wrap(_CONTEXT_0, body),
            encode_header(SET, 0),
        )
    )
    return _wrap(SEQUENCE, _wrap(OID, _SIGNED_DATA) + _wrap(_CONTEXT_0, _wrap(SEQUENCE, signed)))


def _wrap(tag: int, content: bytes) -> bytes:
    return encode_header(tag, len(content)) + content


def _only(encoded: bytes, at: int, end: int, tag: int) -> _Element:
    """The one element between two offsets. Raises ChainError."""
    found = _elements(encoded, at, end)
    if len(found) != 1 or found[0].tag != tag:
        raise ChainError(f"{_NOT}.")
    return found[0]


def _members(encoded: bytes, parent: _Element, *tags: int) -> list[_Element]:
    """The members of an element, which must have these tags. Raises ChainError."""
    found = _elements(encoded, parent.start, parent.end)
    if [member.tag for member in found] != list(tags):
        raise ChainError(f"{_NOT}.")
    return found


def _elements(encoded: bytes, at: int, end: int) -> list[_Element]:
    """All elements between two offsets. Raises ChainError."""
    found = []
    while at < end:
        found.append(_element(encoded, at, end, _MAX_DEPTH))
        at = found[-1].after
    return found


def _element(encoded: bytes, at: int, end: int, depth: int) -> _Element:
    """The element at an offset. depth: of indefinite lengths that may follow. Raises ChainError."""
    if at + 2 > end or encoded[at] & 0x1F == 0x1F:
        raise ChainError(f"{_NOT}: it is cut off or damaged.")
    tag, length, start = encoded[at], encoded[at + 1], at + 2
    if length == _INDEFINITE and tag & 0x20 and depth:
        inner = start
        while encoded[inner : inner + 2] != _END_OF_CONTENTS:
            inner = _element(encoded, inner, end, depth - 1).after
        if inner + 2 > end:
            raise ChainError(f"{_NOT}: it is cut off or damaged.")
        return _Element(tag, at, start, inner, inner + 2)
    if length & 0x80:
        count = length & 0x7F
        start += count
        length = int.from_bytes(encoded[at + 2 : start], "big") if 1 <= count <= 4 else len(encoded)
    if start + length > end:
        raise ChainError(f"{_NOT}: it is cut off or damaged.")
    return _Element(tag, at, start, start + length, start + length)
