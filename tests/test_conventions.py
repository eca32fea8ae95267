"""Conventions of the tests that no linter checks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.documents import ROOT

MODULES = {path: ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "tests").rglob("*.py"))}


def imported_names(path: Path) -> Iterator[str]:
    """The absolute name of everything that a module imports, such as tests.world.Pool."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(MODULES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield from (".".join(filter(None, (*base, node.module, alias.name))) for alias in node.names)


def test_test_modules_share_helper_modules_only() -> None:
    """Only modules named *_on_postgres.py, which run tests of other modules again on PostgreSQL, may import those."""
    imports = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in MODULES
        for name in imported_names(path)
        if name.startswith("tests.") and ".test_" in name and not path.name.endswith("_on_postgres.py")
    ]
    assert imports == [], "move what is shared to a helper module"


TEST_NAMES = [
    (path.relative_to(ROOT), node.name)
    for path, module in MODULES.items()
    for node in ast.walk(module)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
]
NO_UNITS = {
    *(
        "a",
        "an",
        "the",
        "it",
        "they",
        "this",
        "that",
        "there",
        "what",
        "where",
        "which",
        "who",
        "whose",
        "when",
        "while",
    ),
    *("with", "without", "under", "after", "before", "nothing", "everything", "something", "only", "more", "both"),
}
"""Words with which no name of a unit begins: articles, pronouns, conjunctions and prepositions."""


def test_test_names_are_shorter_than_80_characters() -> None:
    assert [f"{path}: {name}" for path, name in TEST_NAMES if len(name) >= 80] == []


def test_test_names_begin_with_a_unit() -> None:
    assert [f"{path}: {name}" for path, name in TEST_NAMES if name.split("_")[1] in NO_UNITS] == []
