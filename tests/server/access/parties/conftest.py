"""A pool with two admins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ccp.testing.pki import PKI
from tests.server.access.parties.admin_calls import (
    ADMINS,
    add_peers,
)
from tests.world import Pool, start


@pytest.fixture(scope="module")
def place(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool with two admins. Tests add parties of their own."""
    with start({"iso2": pkis["iso2"]}, ADMINS, refresh_interval=0.1) as running:
        add_peers(running)
        yield running
