"""Cleans text from other systems before it is forwarded, logged or displayed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MAX_SENTENCES: Final = 10
MAX_SENTENCE: Final = 500
"""Characters. The text may come from a proxy and be a whole page."""
MAX_METADATA: Final = 10_000
"""Characters, as PUT accepts them."""
MAX_DN: Final = 1000
"""Characters of a distinguished name."""


def plain(text: str, max_length: int) -> str:
    """Truncate a text and replace each character that controls a terminal, a log or the writing direction by a space.

    These are the characters of the categories Cc, Cf, Cs, Zl, Zp and the unassigned ones.
    """
    text = text[:max_length]
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def sentences(value: object) -> tuple[str, ...]:
    """Return the texts of a JSON list from another system, limited in number and length; empty if it is no list."""
    items: Iterable[object] = value[: 10 * MAX_SENTENCES] if isinstance(value, list) else ()
    usable = [text for item in items if isinstance(item, str) and (text := plain(item, MAX_SENTENCE).strip())]
    return tuple(usable[:MAX_SENTENCES])
