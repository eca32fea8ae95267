"""Fixtures that every test may use. With pytest-xdist each worker has a world of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ccp.sim.pki import PKI
from tests.databases import NOT_HERE, Server, binaries
from tests.world import Pool, build_pkis, start


@pytest.fixture(scope="session")
def pkis() -> dict[str, PKI]:
    """Public key infrastructures by name, see `tests.world.build_pkis`."""
    return build_pkis()


@pytest.fixture(scope="session")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool with default settings that runs. Shared: use cars and contracts of your own, as `Pool.car` makes them."""
    with start(pkis) as running:
        yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server that runs; each test makes databases of its own. Without fsync, for speed."""
    if binaries() is None:
        pytest.skip(NOT_HERE)
    server = Server()
    try:
        server.start()
        yield server
    finally:
        server.close()
