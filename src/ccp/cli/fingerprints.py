"""Reads fingerprints as operators write them."""

from __future__ import annotations

import re
from typing import Final

from ccp.ids import Fingerprint

_PAIRS: Final = re.compile(
    r"(?:SHA-?256(?: Fingerprint)?=)?((?:[0-9A-F]{2}:){31}[0-9A-F]{2})", re.IGNORECASE | re.ASCII
)


def parse_fingerprint(text: str, field: str = "fingerprint") -> Fingerprint:
    """Parse 64 hexadecimal digits, or 32 pairs with colons as OpenSSL prints them. Raises FieldError."""
    pairs = _PAIRS.fullmatch(text.strip())
    return Fingerprint.parse(pairs[1].replace(":", "") if pairs else text, field)
