# ruff: noqa: F403  what is imported is run
"""Repeated requests on PostgreSQL.

This module imports the tests of the module beside it on purpose: pytest runs them again, on PostgreSQL in place of
SQLite.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ccp.testing.pki import PKI
from tests.databases import Server
from tests.server.http.ocpp.test_repetition import *
from tests.world import Pool, start


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI], postgres: Server) -> Iterator[Pool]:
    """A pool on PostgreSQL, in the place of the session's."""
    with start(pkis, database=postgres.database()) as running:
        yield running


def test_pool_of_these_tests_is_on_postgresql(pool: Pool) -> None:
    assert pool.sql("select version()")[0][0].startswith("PostgreSQL")
