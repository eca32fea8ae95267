# ruff: noqa: F401  what is imported is run
"""Rotation of webhook secrets and the ping on PostgreSQL.

This module imports tests of other test modules on purpose: pytest runs those that reach the store again, on PostgreSQL
in place of the default engine, SQLite.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ccp.testing.pki import PKI
from tests.databases import Server
from tests.server.events.receiver import Receiver, receiving
from tests.server.events.test_ping import test_ping_sends_a_signed_test_event_now
from tests.server.events.test_secret_rotation import (
    QUICK,
    forget,
    test_rotation_by_concurrent_requests_keeps_every_announced_secret,
    test_rotation_is_audited_and_its_secrets_appear_once,
    test_rotation_reaches_receivers_with_either_secret,
    test_rotation_twice_keeps_both_previous_secrets,
)
from tests.world import Pool, start


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI], postgres: Server) -> Iterator[Pool]:
    with start({"iso2": pkis["iso2"]}, **QUICK, database=postgres.database()) as running:
        yield running


def test_pool_of_these_tests_is_on_postgresql(pool: Pool) -> None:
    assert pool.sql("select version()")[0][0].startswith("PostgreSQL")
