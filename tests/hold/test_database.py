"""The short form of `bench/hold.py --only database`."""

from __future__ import annotations

from tests.hold.short import held


def test_database_that_is_silent_leaves_no_vehicle_without_response() -> None:
    held("database")
