"""Conventions of the tests that no linter checks."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import ROOT
from tests.units import begins_with, suggestions, units_of

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


def test_test_names_are_shorter_than_80_characters() -> None:
    assert [f"{path}: {name}" for path, name in TEST_NAMES if len(name) >= 80] == []


def test_test_names_begin_with_a_unit() -> None:
    """A name is a sentence about its unit, such as test_delivery_refuses_request_of_unknown_vehicle."""
    found = [
        f"{path}: {name}\n  in this file e.g. {', '.join(suggestions(path))}"
        for path, name in TEST_NAMES
        if not begins_with(name, units_of(path.relative_to("tests")))
    ]
    assert not found, "\n".join(
        (
            "Begin a test's name, after test_, with what is tested: the name in snake case, singular or plural, of a",
            "module, public class, function, method, property, setting, field, command, log event, metric or table of",
            "src/ccp, or of the test file; not with an adjective or article: test_contract_that_expired_is_refused.",
            "Words that do not count alone, and units outside of the code, are in tests/units.py.",
            *found,
        )
    )


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("test_delivery_refuses_request_of_unknown_vehicle", True),
        ("test_deliveries_end", True),
        ("test_status_urls_are_read", True),
        ("test_opcp_webhook_is_listed", True),
        ("test_negative_cache_is_bounded", True),
        ("test_units", True),
        ("test_expired_contract_is_refused", False),
        ("test_get_returns_nothing", False),
        ("test_the_pool_starts", False),
        ("test_zebra_is_striped", False),
    ],
)
def test_test_names_that_begin_with_no_unit_are_found(name: str, holds: bool) -> None:
    assert begins_with(name, units_of(Path("server/test_units.py"))) is holds


LONG_SLEEP = 0.5
"""Seconds from which a sleep needs a comment with its reason."""


def longest_constant(node: ast.expr) -> float:
    """The largest number of an expression, in seconds; the factors of a product or quotient are not counted alone."""
    match node:
        case ast.Constant(value=int() | float() as seconds):
            return seconds
        case ast.BinOp(op=ast.Mult() | ast.Div()):
            return 0.0
    return max(
        (longest_constant(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)), default=0.0
    )


def long_sleeps(module: ast.Module) -> Iterator[int]:
    """The line of each call of time.sleep or asyncio.sleep that may take long."""
    for node in ast.walk(module):
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).rpartition(".")[2] == "sleep"
            and any(longest_constant(argument) >= LONG_SLEEP for argument in node.args)
        ):
            yield node.lineno


def uncommented_sleeps(source: str) -> list[int]:
    """Lines of long sleeps that have no comment, neither on the line itself nor on the line above."""
    if not (lines := list(long_sleeps(ast.parse(source)))):
        return []
    reader = io.StringIO(source).readline
    commented = {token.start[0] for token in tokenize.generate_tokens(reader) if token.type == tokenize.COMMENT}
    return [line for line in lines if commented.isdisjoint((line - 1, line))]


def test_sleep_calls_that_are_long_say_why() -> None:
    """A test that waits for a change polls (`tests/waiting.py`, `tests/background_rounds.py`) or sets the interval."""
    found = [
        f"{path.relative_to(ROOT)}:{line}" for path in MODULES for line in uncommented_sleeps(path.read_text("utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("time.sleep(0.5)", [1]),
        ("await asyncio.sleep(1)", [1]),
        ("sleep(max(0.0, made + 5 - now()))", [1]),
        ("time.sleep(1)  # The life of a token.", []),
        ("# The life of a token.\ntime.sleep(1)", []),
        ("# The life of a token.\n\ntime.sleep(1)", [3]),
        ("time.sleep(0.4)", []),
        ("time.sleep(3 * INTERVAL)", []),
    ],
)
def test_sleep_calls_that_are_long_are_found(source: str, lines: list[int]) -> None:
    assert uncommented_sleeps(source) == lines
