"""One browser and one pool for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from ccp.testing.pki import PKI
from tests.browser.place import Place, place
from tests.browser.visiting import NOT_HERE, Visitor, chromium, executable


@pytest.fixture(scope="package")
def here(pkis: dict[str, PKI], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A pool with a console. It starts before the browser, whose driver has an event loop in this thread."""
    if executable() is None:
        pytest.skip(NOT_HERE)
    with place(pkis, tmp_path_factory.mktemp("place")) as running:
        yield running


@pytest.fixture(scope="package")
def browser(here: Place) -> Iterator[Browser]:
    """A running Chromium."""
    with chromium() as running:
        yield running


@pytest.fixture
def visitor(here: Place, browser: Browser) -> Iterator[Visitor]:
    """A person who is not logged in. Afterwards no page may have complained."""
    yield from visiting(here, browser)


def visiting(here: Place, browser: Browser) -> Iterator[Visitor]:
    """A visitor for a test."""
    one = Visitor(browser, here.pool.base_url)
    yield one
    one.close()
    assert one.problems == []


@pytest.fixture
def person(visitor: Visitor, here: Place) -> Visitor:
    """An admin who is logged in."""
    visitor.log_in(here.secret)
    assert visitor.page.url.endswith("/console/overview")
    return visitor
