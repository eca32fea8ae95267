"""Text from other systems, made fit to be passed on, logged and shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MAX_SENTENCES: Final = 10
MAX_SENTENCE: Final = 500  # Characters. It may come from a proxy and be a whole page.
MAX_METADATA: Final = 10_000  # Characters, as PUT accepts.


def plain(text: str, max_length: int) -> str:
    """The text without characters that control a terminal, a log or the direction of writing, and not longer than that.

    Each of them (categories Cc, Cf, Cs, Zl, Zp and what is not assigned) becomes a space, so that words stay apart.
    """
    text = text[:max_length]
    return text if text.isprintable() else "".join(each if each.isprintable() else " " for each in text)


def sentences(found: object) -> tuple[str, ...]:
    """The texts of a list that another system sent, few and short; none where it is no list of texts."""
    texts: Iterable[object] = found[: 10 * MAX_SENTENCES] if isinstance(found, list) else ()
    usable = [said for each in texts if isinstance(each, str) and (said := plain(each, MAX_SENTENCE).strip())]
    return tuple(usable[:MAX_SENTENCES])
