"""Fixtures for all tests. With pytest-xdist each worker process has its own."""

from __future__ import annotations

import ast
import functools
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ccp.server.external import resolver
from ccp.testing.pki import PKI
from tests.databases import NOT_HERE, Server, binaries
from tests.world import Pool, build_pkis, start

_WHOLE_SERVERS: Final = {"durability", "end_to_end", "hold", "packaging"}
"""Folders whose tests start the commands of the pool."""
_IN_PROCESS: Final = {"console", "declaration", "diagnosis"}
"""Folders whose code is reached through a server only; it runs in the process of the tests."""
_SLOW: Final = re.compile(r"multiprocessing|concurrent_writes|tests\.scripted_server")
_USES_SERVERS: Final = re.compile(
    r"local_pool|tests\.world import \(?[^)]*?\bstart\b|http\.server|tests\.cli\.run|create_server"
    r"|tests\.client\.servers|import subprocess"
)
_USES_POSTGRES: Final = re.compile(r"replicated\(|databases import .*\bServer\b|pgbouncer")
_COMPARES: Final = re.compile(r"judge|openssl")
_LIMITS_TIME: Final = re.compile(
    r"assert [^\n]*(monotonic\(\) - \w+|\bseconds\b|\btook\b|\blongest\b|asyncio\.run\(test\([^\n]*\)\))[^\n]* <=? "
)
_REPEATS: Final = 2
"""Of a failed test that limits time: another process may have had the processor or the disk."""


@functools.cache
def _markers_of_module(path: Path) -> tuple[str, ...]:
    """The markers of every test of a module, by its folders and by what it imports."""
    source, folders = path.read_text("utf-8"), set(path.relative_to(Path(__file__).parent).parts)
    whole = folders & _WHOLE_SERVERS
    conditions = {
        "slow": "attacks" in folders or whole or _SLOW.search(source),
        "server": whole or "browser" in folders or _USES_SERVERS.search(source),
        "postgres": _USES_POSTGRES.search(source),
        "browser": "browser" in folders,
        "judge": _COMPARES.search(path.stem),
        "in_process": folders & _IN_PROCESS and "postgres" not in path.stem,
    }
    return tuple(name for name, holds in conditions.items() if holds)


def _needs(item: pytest.Item) -> Iterator[str]:
    """The markers of a test, by its module, its fixtures and its parameters."""
    yield from _markers_of_module(item.path)
    fixtures = set(getattr(item, "fixturenames", ()))
    parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
    if "pool" in fixtures:
        yield "server"
    if "postgres" in fixtures or any(each == "postgresql" for each in parameters if isinstance(each, str)):
        yield "postgres"


@functools.cache
def _tests_that_limit_time(path: Path) -> frozenset[str]:
    """The functions of a module which assert that something takes less than a time: a busy machine can fail them."""
    source = path.read_text("utf-8")
    lines = source.splitlines()
    functions = {
        node.name: "\n".join(lines[node.lineno : node.end_lineno])
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }
    found = {name for name, body in functions.items() if _LIMITS_TIME.search(body)}
    helpers = [re.compile(rf"\b{name}\(") for name in found if not name.startswith("test_")]
    found |= {name for name, body in functions.items() if any(helper.search(body) for helper in helpers)}
    return frozenset(found)


def _limits_time(item: pytest.Item) -> bool:
    """Whether a test asserts that something takes less than a time. All those of `tests/hold` do, by their programs."""
    name = getattr(item, "originalname", item.name)
    marked = item.get_closest_marker("timing") is not None or "hold" in item.path.parts
    return marked or name in _tests_that_limit_time(item.path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they need, so that `make test-fast` can leave out what is slow."""
    for item in items:
        for name in _needs(item):
            item.add_marker(name)
        if _limits_time(item):
            item.add_marker(pytest.mark.flaky(reruns=_REPEATS))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items[:] = _in_order_of_distribution(items)


def _in_order_of_distribution(items: list[pytest.Item]) -> list[pytest.Item]:
    """The order in which pytest-xdist distributes modules, with --no-loadscope-reorder.

    Modules that start whole servers take long and wait for much of it: they come early and one at a time, among others.
    Attacks follow. Many short modules at the end keep every process busy until the end.
    """
    modules: dict[Path, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.path, []).append(item)
    whole, others = [], []
    for path, tests in modules.items():
        (whole if set(path.parts) & _WHOLE_SERVERS else others).append(tests)
    others.sort(key=lambda tests: "attacks" not in tests[0].path.parts)
    ordered = []
    for index, tests in enumerate(others):
        if whole and index % 8 == 0:
            ordered += whole.pop()
        ordered += tests
    return [*ordered, *(item for tests in whole for item in tests)]


@pytest.fixture(scope="session", autouse=True)
def names_of_examples() -> Iterator[None]:
    """Make example names unresolvable, so that no test sends a DNS query."""
    system = resolver.system_lookup

    def lookup(host: str) -> list[str]:
        if host.endswith((".example", ".example.org", ".example.com")):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return system(host)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolver, "system_lookup", lookup)
        yield


@pytest.fixture(scope="session")
def pkis() -> dict[str, PKI]:
    """Public key infrastructures by name, see `tests.world.build_pkis`."""
    return build_pkis()


@pytest.fixture(scope="session")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A running pool with default settings. Tests share it, so use new cars and contracts, as `Pool.car` makes them."""
    with start(pkis) as running:
        yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A running PostgreSQL server without fsync; each test creates its own databases."""
    if binaries() is None:
        pytest.skip(NOT_HERE)
    server = Server()
    try:
        server.start()
        yield server
    finally:
        server.close()
