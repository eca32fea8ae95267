"""External text on a terminal: control, bidirectional and invisible characters are escaped.

A certificate's name or a caller's client id could otherwise move the cursor, reverse the order of the following text
("Trojan Source"), or look like another name. All output of commands and of the log passes through this module.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from itertools import chain
from typing import Final

_IGNORABLE: Final = (
    (0x34F, 0x34F),  # combining grapheme joiner
    (0x115F, 0x1160),  # Hangul fillers
    (0x17B4, 0x17B5),  # Khmer inherent vowels
    (0x180B, 0x180F),  # Mongolian selectors
    (0x2800, 0x2800),  # blank Braille pattern
    (0x3164, 0x3164),  # Hangul filler
    (0xFE00, 0xFE0F),  # variation selectors
    (0xFFA0, 0xFFA0),  # halfwidth Hangul filler
    (0xE0100, 0xE01EF),  # variation selectors
)
"""Invisible code points for which `str.isprintable` is true: letters and marks among Unicode's
Default_Ignorable_Code_Point, and the blank Braille pattern. Format characters, separators and surrogates are not
printable anyway."""
_EDGES: Final = tuple(chain.from_iterable((first, last + 1) for first, last in _IGNORABLE))
_UNUSUAL: Final = re.compile(r"[^\x20-\x7e]")
_UNUSUAL_IN_JSON: Final = re.compile(r"[^\x20-\x7e\n]")


def is_visible(character: str) -> bool:
    """Whether a character is visible and does not affect others. The space is the only such separator."""
    return character.isprintable() and not bisect_right(_EDGES, ord(character)) % 2


def printable(text: str) -> str:
    """The text as one printable line: invisible characters become escape sequences such as \\x1b or \\u202e."""
    return text if text.isascii() and text.isprintable() else _UNUSUAL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    return character if is_visible(character) else character.encode("unicode_escape").decode("ascii")


def printable_json(text: str) -> str:
    """The JSON text (RFC 8259) with invisible characters in its strings escaped. Line feeds stay."""
    return text if text.isascii() and "\x7f" not in text else _UNUSUAL_IN_JSON.sub(_escaped_in_json, text)


def printable_json_bytes(document: bytes) -> bytes:
    """Like `printable_json`, for UTF-8."""
    if document.isascii() and b"\x7f" not in document:
        return document
    return printable_json(document.decode()).encode()


def _escaped_in_json(found: re.Match[str]) -> str:
    character = found[0]
    if is_visible(character):
        return character
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]
