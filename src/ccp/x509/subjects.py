"""Common name and domain components of a subject, without building cryptography's name object."""

from __future__ import annotations

from typing import Final

_CN: Final = bytes.fromhex("0603550403")
_DC: Final = bytes.fromhex("060a0992268993f22c640119")
_CHARSETS: Final = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii"}  # UTF8String, PrintableString, IA5String


def simple_subject_values(name: bytes) -> tuple[list[str], list[str]] | None:
    """The values of CN and of DC; None if the name is not simple and must be read with cryptography.

    name: DER contents of a Name that cryptography's parser has accepted as a sequence of sets of attributes.
    Building the name object costs more than the rest of reading a leaf. A simple name has one short attribute in each
    set, all in UTF-8 or ASCII.
    """
    common: list[str] = []
    domain: list[str] = []
    at = 0
    while at < len(name):
        length = name[at + 1]
        if not 7 <= length <= 0x7F or name[at + 3] != length - 2:
            return None
        value_at = at + 6 + name[at + 5]
        end = at + 2 + length
        charset = _CHARSETS.get(name[value_at]) if value_at + 1 < end else None
        if charset is None or name[value_at + 1] != end - value_at - 2:
            return None
        try:
            value = name[value_at + 2 : end].decode(charset)
        except UnicodeDecodeError:
            return None
        if name.startswith(_CN, at + 4):
            common.append(value)
        elif name.startswith(_DC, at + 4):
            domain.append(value)
        at = end
    return common, domain
