"""Names from outside that are misspelt: which known name is meant, and how a sentence may quote what was given."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Final

_MAX_SHOWN: Final = 40  # Characters of a name in a sentence.
_SEPARATORS: Final = re.compile(r"[^0-9a-z]+")
_PLAIN: Final = re.compile(r"[0-9A-Za-z_.-]+", re.ASCII)


def meant(name: str, known: Collection[str]) -> str | None:
    """The known name that another one resembles: but for case and separators, or by a letter or two.

    Short names resemble many, so they have to come closer: one letter below six, none below four.
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
    """Whether at most so many letters to insert, delete, replace or swap with the next one make them the same."""
    pairs = enumerate(zip(one, other, strict=False))
    same = next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
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


def shown(name: str) -> str:
    """A name as a sentence may quote it: shortened, and with nothing in it that a terminal obeys."""
    short = name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}…"
    return short if _PLAIN.fullmatch(name) else json.dumps(short)
