"""Fixtures that every test may use. With pytest-xdist each worker has a world of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ccp.server.external import resolver
from ccp.testing.pki import PKI
from tests.databases import NOT_HERE, Server, binaries
from tests.world import Pool, build_pkis, start


@pytest.fixture(scope="session", autouse=True)
def names_of_examples() -> Iterator[None]:
    """Names of examples cannot be resolved now, whatever name server the machine has: nothing leaves it."""
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
