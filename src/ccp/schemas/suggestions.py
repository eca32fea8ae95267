"""Suggestions for misspelt names, and quoting of untrusted names in sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Final

_MAX_QUOTED: Final = 40  # Characters of a name in a sentence.
_SEPARATORS: Final = re.compile(r"[^0-9a-z]+")
_PLAIN: Final = re.compile(r"[0-9A-Za-z_.-]+", re.ASCII)


def closest(name: str, known: Collection[str]) -> str | None:
    """Return the known name that equals the name except for case, separators and at most two edits; None without one.

    Short names resemble many others, so fewer edits are allowed: one below six letters, none below four.
    """
    bare = _bare(name)
    for candidate in sorted(known):
        target = _bare(candidate)
        allowed = 0 if min(len(bare), len(target)) < 4 else 1 if len(target) < 6 else 2
        if abs(len(bare) - len(target)) <= allowed and _within(bare, target, allowed):
            return candidate
    return None


def _bare(name: str) -> str:
    return _SEPARATORS.sub("", name.lower())


def _within(one: str, other: str, edits: int) -> bool:
    """Whether at most so many edits make the names equal: insert, delete, replace, or swap two adjacent characters."""
    pairs = enumerate(zip(one, other, strict=False))
    same = next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
    one, other = one[same:], other[same:]
    if not one or not other:
        return len(one) + len(other) <= edits
    if edits == 0:
        return False
    return (
        _within(one[1:], other, edits - 1)
        or _within(one, other[1:], edits - 1)
        or _within(one[1:], other[1:], edits - 1)
        or (one[:2] == other[1::-1] and _within(one[2:], other[2:], edits - 1))
    )


def quotable(name: str) -> str:
    """Return a name as a sentence may quote it: shortened, and without control characters."""
    short = name if len(name) <= _MAX_QUOTED else f"{name[:_MAX_QUOTED]}…"
    return short if _PLAIN.fullmatch(name) else json.dumps(short)
