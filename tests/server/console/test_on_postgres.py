# ruff: noqa: F401  what is imported is run
"""The console on PostgreSQL: log-in, sessions, every page, why, replay, rotation.

This module imports tests of other test modules on purpose: pytest runs those that reach the store again, on PostgreSQL
in place of the default engine, SQLite.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ccp.testing.pki import PKI
from tests.databases import Server
from tests.server.console.browsing import admin
from tests.server.console.test_audit_pages import *  # noqa: F403  every test of the module, with the pool below
from tests.server.console.test_login import (
    ago,
    test_admin_ends_the_session_of_another_person,
    test_login_opens_the_page_that_was_asked_for,
    test_session_ends_at_logout,
    test_session_expires,
    test_session_id_is_not_in_the_database_and_new_at_each_login,
    test_session_in_use_does_not_become_idle,
    test_session_is_bound_to_the_browser,
    test_session_is_valid_in_every_worker,
    test_sessions_of_one_person_are_bounded,
)
from tests.server.console.test_overview import (
    counters,
    test_contested_vehicles_are_listed_in_pages,
    test_overview_charts_the_requests_of_a_day,
    test_overview_charts_the_requests_of_a_month,
)
from tests.server.console.test_pages import *  # noqa: F403
from tests.server.console.test_pages import OPTIONS
from tests.server.console.test_refusals import (
    test_audit_rows_of_refused_requests_link_to_why,
    test_refusals_of_one_trace_are_all_shown_and_paged,
    test_refusals_page_filters_and_pages,
    test_refusals_page_searches_a_bounded_number_of_records,
    test_vehicle_page_of_an_unknown_vehicle_shows_its_refusals,
    test_vehicle_page_shows_what_is_stored_of_deliveries,
    test_why_finds_the_refusals_of_a_vehicle_and_of_a_contract,
    test_why_tells_the_story_of_a_trace_id,
)
from tests.server.console.test_requests import (
    test_form_of_another_session_is_refused,
    test_page_has_the_headers_of_the_console,
    test_page_loads_nothing_from_elsewhere_and_has_no_inline_code,
)
from tests.server.console.test_sessions import (
    test_form_of_a_person_who_was_disabled_meanwhile_changes_nothing,
    test_logins_at_once_all_succeed_within_the_bound,
    test_session_and_its_forms_survive_a_restart,
    test_session_does_not_begin_after_its_party_lost_its_rights,
    test_session_ends_at_the_next_login_of_its_browser,
    test_session_id_that_was_not_issued_causes_no_query,
    test_session_that_was_planted_does_not_become_that_of_a_person,
    test_sessions_are_bounded_and_listed_in_pages,
    test_sessions_that_end_in_several_requests_are_recorded_once,
)
from tests.server.console.test_vehicles import (
    test_contract_page_names_the_certificate_that_is_revoked,
    test_contract_page_shows_both_chains_up_to_trusted_roots,
    test_search_finds_a_vehicle_and_says_when_nothing_is_stored,
    test_vehicle_page_shows_a_viewer_no_id,
)
from tests.server.console.test_why import (
    test_why_answers_a_request_as_the_pool_does,
    test_why_reads_without_causing_events_or_deliveries,
)
from tests.world import Pool, start


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI], postgres: Server) -> Iterator[Pool]:
    """A pool on PostgreSQL, in the place of the modules' own."""
    admins = [admin(), admin("second_admin")]
    with start(pkis, admins, database=postgres.database(), login_failures_per_minute=0, **OPTIONS) as running:
        yield running


def test_pool_of_these_tests_is_on_postgresql(pool: Pool) -> None:
    assert pool.sql("select version()")[0][0].startswith("PostgreSQL")
