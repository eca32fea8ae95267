"""Long queries, see `bench/holds/queries.py`."""

from __future__ import annotations

from tests.hold.short import held


def test_queries_that_are_long_read_what_they_need_and_hold_up_no_changes() -> None:
    held("queries")
