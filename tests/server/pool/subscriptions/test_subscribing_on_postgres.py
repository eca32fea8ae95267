# ruff: noqa: F401  what is imported is run
"""Subscriptions to other systems on PostgreSQL.

This module imports tests of another test module on purpose: pytest runs those that reach the store again, on PostgreSQL
in place of the default engine, SQLite.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ccp.testing.pki import PKI
from tests.databases import Server
from tests.server.pool.subscriptions.system import TOKEN, EventSystem
from tests.server.pool.subscriptions.test_subscribing import (
    system,
    test_peer_that_is_removed_cannot_send_events_any_more,
    test_subscribe_after_an_interruption_leaves_one_webhook,
    test_subscribe_again_changes_nothing,
    test_subscribe_renew_replaces_webhook_and_secret,
    test_unsubscribe_removes_both_sides,
)
from tests.world import Pool, start


@pytest.fixture
def subscriber(pkis: dict[str, PKI], system: EventSystem, postgres: Server) -> Iterator[Pool]:  # noqa: F811
    options = {"pcp_url": system.url, "pcp_dialect": "opcp", "pcp_token": TOKEN, "require_known_vehicle": False}
    with start(pkis, refresh_interval=0.05, database=postgres.database(), **options) as running:
        yield running


def test_subscriber_of_these_tests_is_on_postgresql(subscriber: Pool) -> None:
    assert subscriber.sql("select version()")[0][0].startswith("PostgreSQL")
