"""A pool without event delivery, a receiver, and the removal of what a test stored."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ccp.server.domain.parties import PartyRole
from ccp.testing.pki import PKI
from tests.server.events.receiver import Receiver, receiving
from tests.world import Pool, party, start


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool without event delivery. Each test creates its webhooks."""
    too = [
        party("admin", PartyRole.ADMIN),
        party("fresh_oem", PartyRole.OEM, wmis="WFA WFB"),
        party("full", PartyRole.OEM, wmis="FUL"),
    ]
    with start({"iso2": pkis["iso2"]}, too, event_dispatch=False) as running:
        yield running


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """A receiver for the tests of a module."""
    with receiving() as running:
        yield running


@pytest.fixture
def forget(pool: Pool) -> Iterator[None]:
    """Remove webhooks and events after a test: a party may have so many webhooks only."""
    yield
    for table in ("webhook", "delivery", "outbox"):
        pool.sql(f"delete from {table}")
