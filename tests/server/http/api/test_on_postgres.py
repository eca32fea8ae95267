# ruff: noqa: F401  what is imported is run
"""The operations over HTTP on PostgreSQL.

This module imports tests of other test modules on purpose: pytest runs those that reach the store again, on PostgreSQL
in place of the default engine, SQLite.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ccp.testing.pki import PKI
from tests.databases import Server
from tests.server.http.api.test_contracts import *  # noqa: F403  every test of the module, with the pool below
from tests.server.http.api.test_deliver import (
    rich,
    test_car_gets_its_contract_and_can_install_it,
    test_car_gets_the_variant_under_the_v2g_root_that_it_lists,
    test_car_that_lists_no_known_root_gets_the_newest_variant,
    test_contract_is_as_old_as_its_first_variant,
    test_iso2_car_gets_one_item_only_and_it_is_the_default,
    test_iso20_delivery_order_is_prioritised_then_default_then_oldest,
)
from tests.server.http.api.test_deliver_refusals import (
    test_car_whose_only_contract_has_expired_gets_none,
    test_car_without_a_contract_is_told_so,
)
from tests.server.http.api.test_publish import (
    test_contract_has_one_variant_for_each_namespace_and_v2g_root,
    test_metadata_of_a_contract_is_given_back,
    test_publication_for_another_vehicle_moves_the_contract_with_all_its_variants,
    test_publication_makes_the_first_contract_of_a_vehicle_its_default_alone,
    test_publication_of_a_variant_again_replaces_it_and_answers_201,
    test_publication_that_fails_leaves_the_stored_contract_as_it_was,
    test_publications_at_once_for_a_vehicle_leave_exactly_one_default,
    test_publications_of_a_contract_at_once_leave_it_with_one_vehicle,
    test_signed_contract_is_stored_and_answered_with_201_and_no_body,
)
from tests.world import Pool, start


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI], postgres: Server) -> Iterator[Pool]:
    """A pool on PostgreSQL, in the place of the session's."""
    with start(pkis, database=postgres.database()) as running:
        yield running


def test_pool_of_these_tests_is_on_postgresql(pool: Pool) -> None:
    assert pool.sql("select version()")[0][0].startswith("PostgreSQL")
