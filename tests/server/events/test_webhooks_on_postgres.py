# ruff: noqa: F401  what is imported is run
"""The event service on PostgreSQL: the tests of the default engine again, as far as they come to the store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ccp.server.domain.parties import PartyRole
from ccp.testing.pki import PKI
from tests.databases import Server
from tests.server.events.test_webhooks import (
    forget,
    test_a_car_maker_subscribes_and_is_told_everything_of_its_webhook_and_the_secret,
    test_a_change_is_of_what_is_given_and_keeps_the_secret,
    test_a_party_has_at_most_so_many_webhooks_even_if_it_makes_them_all_at_once,
    test_a_removed_webhook_is_gone_with_what_waits_for_it,
    test_anothers_webhook_is_not_found_just_as_one_that_never_was,
    test_deliveries_are_told_page_by_page_the_newest_first_and_by_state,
    test_each_change_is_in_the_audit_trail_without_secret_and_address,
    test_the_largest_cursor_finds_everything_and_the_smallest_nothing,
    test_what_became_of_each_event_is_told_its_subscriber,
)
from tests.world import Pool, party, start


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI], postgres: Server) -> Iterator[Pool]:
    too = [party("fresh_oem", PartyRole.OEM, wmis="WFA WFB"), party("full", PartyRole.OEM, wmis="FUL")]
    with start({"iso2": pkis["iso2"]}, too, event_dispatch=False, database=postgres.database()) as running:
        yield running


def test_the_pool_of_these_tests_is_on_postgresql(pool: Pool) -> None:
    assert pool.sql("select version()")[0][0].startswith("PostgreSQL")
