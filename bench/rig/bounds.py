"""The bounds of containers in docs/memory.md, as numbers where they are numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from rig.containers import Size

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "memory.md"
_SMALL: Final = 256
"""A container without a number may have as many entries in a test run: requests and connections are fewer."""
_ROW: Final = re.compile(r"^\|([^|]*)\|[^|]*\|\s*(\d*)", re.M)
_NAME: Final = re.compile(r"`([a-z_0-9]+(?:\.\w+)+)(?:\(\))?`")


def stated() -> dict[str, int | None]:
    """Bounds by container, named as by `rig.containers`; None if the bound is not a number."""
    table = DOCUMENT.read_text("utf-8").partition("\n## ")[0]
    return {
        f"ccp.{name}": int(number) if number else None
        for names, number in _ROW.findall(table)
        for name in _NAME.findall(names)
    }


def exceeded(sizes: dict[str, Size]) -> list[str]:
    """One sentence for each container that is longer than its bound."""
    found = []
    for name, bound in stated().items():
        longest = sizes[name].longest if name in sizes else 0
        if name not in _OF_THE_SOURCE and longest > (bound or _SMALL):
            found.append(f"{name} has {longest} entries, at most {bound or _SMALL} are allowed")
    return found


_OF_THE_SOURCE: Final = frozenset({"ccp.exi.decoder.Automaton.states", "ccp.exi.decoder.Automaton.simple_elements"})
