"""Check what no linter knows: words that our documents no longer use, and the size of modules.

    python .ci/style.py            # exit status 1 where something is found, one line for each finding

A module may be longer than `MAX_LINES` where its docstring says why, in a sentence that begins with "Length:".
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
MAX_LINES: Final = 500

# What each stood for. Words of the field's own sentences, such as quoted clauses, go into `ALLOWED`.
WORDS: Final = {
    r"whoever|somebody|nobody": "the caller, the client, a partner",
    r"left alone|leaves? \w+ alone": "circuit open",
    r"no good|is good|are good": "valid, invalid",
    r"looks? after|looked after": "manage, maintain",
    r"cleans(?:e|es|ed|ing)": "purge",
    r"neighbours?": "external service",
    r"octets?": "bytes",
    r"riddles?": "",
    r"be it": "whether",
}
# Identifiers, as whole words or as parts between underscores.
IDENTIFIERS: Final = {
    "told": "translate_error, audit_fields, log_outcome",
    "said": "claimed, raw",
    "question": "query",
    "questions": "queries",
    "neighbours": "external",
    "octets": "data, der, message",
    "gathered": "batched",
    "outlet": "event_sink",
    "cleanse": "purge",
}
# File and pattern of what may stay: terms of standards.
ALLOWED: Final[tuple[tuple[str, str], ...]] = (
    ("", r"OCTET STRING|octet-stream|octet string"),
    # The Unix user without privileges, and a database role of that name.
    ("tests/databases.py", r'"nobody"'),
    ("tests/pgbouncer.py", r'"nobody"'),
    ("tests/server/storage/test_postgres_schema.py", r'"nobody"'),
    ("CONTRIBUTING.md", r"Leaving somebody alone"),  # An example of what not to write.
    # The group of commands about external services and other pools. Its module may use the word in names too.
    ("", r"ccp neighbour\b"),
    ("src/ccp/cli/neighbour.py", r"neighbour"),
    ("src/ccp/cli/commands.py", r'"neighbour"'),
    ("tests/cli/", r'"neighbour"'),
    (".ci/style.py", r".*"),
)


def sources() -> Iterator[Path]:
    for top in ("src", "tests", "bench", ".ci"):
        yield from sorted((ROOT / top).rglob("*.py"))


def documents() -> Iterator[Path]:
    yield from sorted(ROOT.glob("*.md"))
    yield from sorted((ROOT / "docs").rglob("*.md"))


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of each line of prose: strings and comments of a module, the whole of a document."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield from enumerate(token.string.splitlines(), token.start[0])


def allowed(place: str, line: str) -> bool:
    return any(place.startswith(prefix) and re.search(pattern, line) for prefix, pattern in ALLOWED)


def words(path: Path) -> Iterator[str]:
    place = str(path.relative_to(ROOT))
    for number, line in prose(path):
        for pattern, instead in WORDS.items():
            found = re.search(rf"\b(?:{pattern})\b", line, re.IGNORECASE)
            if found and not allowed(place, line):
                yield f"{place}:{number}: {found[0]!r}; write {instead or 'something else'}"


def identifiers(path: Path) -> Iterator[str]:
    place = str(path.relative_to(ROOT))
    if allowed(place, ""):
        return
    seen = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        name = getattr(node, "name", None) if isinstance(node, ast.stmt) else getattr(node, "arg", None)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        if not isinstance(name, str) or name in seen:
            continue
        seen.add(name)
        for part in name.lower().strip("_").split("_") if not name.startswith("test_") else ():
            if part in IDENTIFIERS:
                number = getattr(node, "lineno", 0)
                yield f"{place}:{number}: the name {name!r}; use {IDENTIFIERS[part]}"


def size(path: Path) -> Iterator[str]:
    text = path.read_text("utf-8")
    lines = text.count("\n")
    if lines > MAX_LINES and "\nLength:" not in (ast.get_docstring(ast.parse(text)) or ""):
        yield f"{path.relative_to(ROOT)}: {lines} lines; split it by subject, or say in its docstring why not"


def main() -> int:
    found = [finding for path in documents() for finding in words(path)]
    for path in sources():
        found += [*words(path), *identifiers(path)]
        if path.is_relative_to(ROOT / "src") or path.is_relative_to(ROOT / "tests"):
            found += size(path)
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
