# ruff: noqa: F401  what is imported is run
"""The webhooks of partners on PostgreSQL.

This module imports tests of another test module on purpose: pytest runs those that reach the store again, on PostgreSQL
in place of the default engine, SQLite.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ccp.server.domain.parties import PartyRole
from ccp.testing.pki import PKI
from tests.databases import Server
from tests.server.events.test_webhook_changes import (
    test_webhook_changes_are_audited_without_secret_and_path,
    test_webhook_deliveries_accept_extreme_cursors,
    test_webhook_deliveries_are_paged_and_filtered,
    test_webhook_deliveries_show_each_outcome,
    test_webhook_edit_changes_given_fields_and_keeps_the_secret,
    test_webhook_remove_deletes_pending_deliveries,
)
from tests.server.events.test_webhooks import (
    test_webhook_is_created_by_an_oem_that_gets_its_secret,
    test_webhook_limit_holds_for_concurrent_requests,
    test_webhooks_of_other_parties_are_not_found,
)
from tests.world import Pool, party, start

pytestmark = pytest.mark.usefixtures("forget")


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI], postgres: Server) -> Iterator[Pool]:
    too = [party("fresh_oem", PartyRole.OEM, wmis="WFA WFB"), party("full", PartyRole.OEM, wmis="FUL")]
    with start({"iso2": pkis["iso2"]}, too, event_dispatch=False, database=postgres.database()) as running:
        yield running


def test_pool_of_these_tests_is_on_postgresql(pool: Pool) -> None:
    assert pool.sql("select version()")[0][0].startswith("PostgreSQL")
