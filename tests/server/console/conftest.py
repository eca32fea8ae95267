"""A pool with a console."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ccp.testing.pki import PKI
from tests.server.console.browsing import Browser, admin, logged_in
from tests.world import Pool, start


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A running pool with a console and two admins. Failed log-ins are not limited."""
    admins = [admin("admin"), admin("second_admin")]
    with start(pkis, admins, console=True, login_failures_per_minute=0, refresh_interval=0.05) as running:
        yield running


@pytest.fixture
def browser(pool: Pool) -> Iterator[Browser]:
    """A browser that is not logged in."""
    with Browser(pool.base_url) as one:
        yield one


@pytest.fixture
def person(pool: Pool) -> Iterator[Browser]:
    """A browser of the party `admin`, logged in."""
    with logged_in(pool) as one:
        yield one
