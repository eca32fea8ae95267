"""Texts from outside in a page, cut to a number of bytes: a page has a bounded size, whatever partners send."""

from __future__ import annotations

from typing import Final

from markupsafe import escape

MAX_TEXT: Final = 300
"""Bytes of a text in a page, unless its place has another limit."""


def size_of(text: str) -> int:
    """Bytes of a text in a page."""
    return len(escape(text).encode("utf-8", "replace"))


def cut(text: str, limit: int = MAX_TEXT) -> str:
    """A text that needs at most `limit` bytes in a page: of a longer one its beginning, and an ellipsis."""
    if 6 * len(text) <= limit or size_of(text) <= limit:
        return text
    size, kept = 3, 0  # The ellipsis.
    for character in text:
        size += size_of(character)
        if size > limit:
            break
        kept += 1
    return text[:kept] + "…"
