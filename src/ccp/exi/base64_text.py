"""Messages in Base64 text as partners send it, with an error that says what a wrong text looks like.

ASCII white space is ignored anywhere in the text, because MIME and PEM tools wrap lines (RFC 2045 clause 6.8).
Everything else is strict RFC 4648 clause 4: standard alphabet, padding, no bits beyond the last byte.
"""

from __future__ import annotations

import binascii
import re
from typing import Final

from ccp.errors import EXIError
from ccp.exi.codec import encode
from ccp.exi.xml import from_xml

_EXI_START: Final = 0x80
"""First byte of every EXI message: distinguishing bits, no options, version 1. Source: W3C EXI 1.0 clause 5."""
V2GTP_START: Final = b"\x01\xfe"
"""First two bytes of a V2GTP header: protocol version and its inverse. Source: ISO 15118-2 clause 7.8.3.1."""

# First characters of an XML document in UTF-8 and UTF-16, with and without byte order mark.
_XML: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*<|(?:\xff\xfe)?(?:\s\x00)*<\x00|(?:\xfe\xff)?(?:\x00\s)*\x00<")

_WHITE_SPACE: Final = dict.fromkeys(b" \t\n\r\x0c\x0b")
_ALPHABET: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
_URL_SAFE: Final = str.maketrans("-_", "+/")
_HEX: Final = re.compile(r"(?:0x)?((?:[0-9A-Fa-f]{2}[:-]?)+)", re.ASCII)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]+={0,2}", re.ASCII)

_NOT: Final = "not Base64 (RFC 4648 clause 4)"


def message_bytes(text: str, *, allow_xml: bool = False) -> bytes:
    """Decode the Base64 text of an EXI message.

    allow_xml: the text may be the Base64 of an XML document instead, whose message is then encoded. Raises EXIError if
    the text is not Base64, or does not begin like a message; the sentence says what it looks like.
    """
    try:
        found = _strict(text)
        if found[0] == _EXI_START:
            return found
    except (ValueError, IndexError):
        pass
    compact = text.translate(_WHITE_SPACE)
    try:
        found = _strict(compact)
    except ValueError:
        raise EXIError(f"{_NOT}: {_problem(compact, text)}") from None
    if not found:
        raise EXIError("the text is empty")
    if allow_xml and looks_like_xml(found):
        return encode(from_xml(found))
    if found[0] != _EXI_START and (problem := _wrapping(compact, found)) is not None:
        raise EXIError(problem)
    return found


def looks_like_xml(data: bytes) -> bool:
    """Whether data begins like an XML document in an encoding that is read. No EXI message does."""
    return _XML.match(data) is not None


def _strict(text: str) -> bytes:
    """Decode strict Base64. Raises ValueError."""
    found = binascii.a2b_base64(text, strict_mode=True)
    # binascii accepts superfluous padding and bits beyond the last byte; encoding the result again detects both.
    if binascii.b2a_base64(found, newline=False) != text.encode("ascii"):
        raise ValueError
    return found


def _wrapping(compact: str, found: bytes) -> str | None:
    """What Base64 text contains instead of an EXI message; None if the codec reports a more precise error."""
    if (hexadecimal := _hexadecimal(compact)) is not None:
        return f"the text looks like {hexadecimal}"
    if found.startswith(V2GTP_START):
        return "the text looks like Base64 of a message with its V2GTP header (01FE); leave out these eight bytes"
    if looks_like_xml(found):
        return "the text looks like Base64 of XML; an EXI message is expected"
    if found.startswith(b"\x1f\x8b"):
        return "the text looks like Base64 of gzip; an EXI message is expected"
    inner = found.translate(None, b" \t\n\r\f\v")
    if len(inner) >= 4 and _BASE64.fullmatch(inner.decode("latin-1")):
        what = "hexadecimal in Base64" if _hexadecimal(inner.decode("ascii")) else "double Base64"
        return f"the text looks like {what}; encode the message in Base64 once"
    return None


def _hexadecimal(compact: str) -> str | None:
    match = _HEX.fullmatch(compact)
    if match is None:
        return None
    start = re.sub("[:-]", "", match[1][:6]).lower()
    if start.startswith("01fe"):
        return "hexadecimal with a V2GTP header (01FE); leave out these eight bytes and encode the message in Base64"
    # A short text, or one with few different characters, may as well be Base64.
    if start.startswith("80") or (len(compact) >= 32 and len(set(compact)) >= 8):
        return "hexadecimal; encode the message in Base64"
    return None


def _problem(compact: str, text: str) -> str:
    """What a text that is not Base64 looks like. compact: the text without white space."""
    start = compact[:64].lstrip("\ufeff")
    if start.startswith("<"):
        return "it looks like XML; a message in Base64 is expected"
    if start.startswith("{"):
        return "it looks like JSON; an EXI message in Base64 is expected"
    if start.startswith("-----BEGIN"):
        return "it looks like PEM; the text between its first and last line is expected"
    if start.lower().startswith("data:"):
        return "it looks like a data URL; the text behind its comma is expected"
    if (hexadecimal := _hexadecimal(compact)) is not None:
        return f"it looks like {hexadecimal}"
    if _BASE64.fullmatch(compact):
        return _almost(compact)
    return _first_invalid(text)


def _almost(compact: str) -> str:
    """What is wrong with a text of letters, digits, + / - _ and padding at its end."""
    body = compact.rstrip("=")
    url_safe = "-" in body or "_" in body
    lacks = -len(body) % 4
    unpadded = len(compact) != len(body) + lacks
    if lacks == 3:
        return "its length is impossible, so it is probably cut off"
    if url_safe:
        more = ", and its padding (=) is missing" if unpadded else ""
        return f"it looks like the URL-safe alphabet (- and _ in the place of + and /){more}"
    if unpadded:
        return (
            "its padding is missing (= at the end)" if len(compact) < len(body) + lacks else "it has too much padding"
        )
    return "its last character has bits beyond the last byte, so it is probably damaged"


def _first_invalid(text: str) -> str:
    """The first character that Base64 does not allow at its position."""
    known = {*map(chr, _ALPHABET), *map(chr, _WHITE_SPACE)}
    for position, character in enumerate(text, 1):
        if character not in known:
            shown = f"'{character}'" if character.isascii() and character.isprintable() else f"U+{ord(character):04X}"
            if character == "=":
                return f"padding (=) at character {position}, before the end"
            return f"{shown} at character {position}"
    return "its padding is wrong"
