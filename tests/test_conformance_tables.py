"""docs/conformance-opnc.md and docs/conformance-opcp.md have a row for everything that is published, with its test."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.documents import DOCS, ROOT, table
from tests.published_items import SHARED, sections

every_dialect = pytest.mark.parametrize("dialect", ["opnc", "opcp"])
_TEST = re.compile(r"tests/[\w/]+\.py::test_\w+")


def rows(dialect: str) -> dict[str, list[tuple[list[str], list[str]]]]:
    """The rows of a table by section: items, and the tests that show them."""
    found = {}
    text = (DOCS / f"conformance-{dialect}.md").read_text("utf-8")
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        cells = [row for row in table(body) if row[0] != "item"]
        found[heading.strip("` ")] = [
            (re.findall(r"`([^`]+)`", row[0]), re.findall(r"`([^`]+)`", row[1])) for row in cells
        ]
    return found


@cache
def names_of_tests(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@every_dialect
def test_conformance_rows_name_tests_that_exist(dialect: str) -> None:
    named = [test for listed in rows(dialect).values() for _, tests in listed for test in tests]
    assert len(named) > 50
    for test in named:
        assert _TEST.fullmatch(test), test
        path, _, name = test.partition("::")
        assert (ROOT / path).exists(), test
        assert name in names_of_tests(path), test


@every_dialect
def test_conformance_rows_have_items_and_a_test(dialect: str) -> None:
    for section, listed in rows(dialect).items():
        for items, tests in listed:
            assert items, (section, tests)
            assert tests, (section, items)
        every = [item for items, _ in listed for item in items]
        assert len(every) == len(set(every)), (section, "an item is listed twice")


@pytest.mark.skipif(not SHARED.exists(), reason=f"the published descriptions are not at {SHARED}")
@every_dialect
def test_conformance_tables_have_a_row_for_everything_published(dialect: str) -> None:
    published = sections(dialect)
    listed = {section: {item for items, _ in found for item in items} for section, found in rows(dialect).items()}
    assert set(listed) == set(published)
    for section, items in published.items():
        assert items - listed[section] == set(), f"without a row: {section}"
        assert listed[section] - items == set(), f"not published: {section}"
