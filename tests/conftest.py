"""Fixtures that every test may use. With pytest-xdist each worker has a world of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ccp.sim.pki import PKI
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
