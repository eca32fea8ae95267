"""Pieces of Markdown for generated pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def code(text: str) -> str:
    """A code span, whatever backticks are in the text."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def one_line(text: str) -> str:
    """A text as a cell of a table: one line, without characters that end a cell."""
    return " ".join(text.split()).replace("|", "\\|")


def plain(text: str) -> str:
    """A text for a terminal: links and code spans as their words."""
    return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text).replace("`", "").replace("*", "")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with an empty line after it."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join((*("| " + " | ".join(line) + " |" for line in lines), ""))


def section(text: str, title: str) -> str:
    """The section with this heading of the second level, without the heading. Raises KeyError."""
    _, found, rest = text.partition(f"\n## {title}\n")
    if not found:
        raise KeyError(title)
    return rest.partition("\n## ")[0].strip() + "\n"
