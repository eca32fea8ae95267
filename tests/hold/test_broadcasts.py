"""A flood of broadcasts, see `bench/holds/broadcasts.py`."""

from __future__ import annotations

from tests.hold.short import held


def test_other_cars_hardly_notice_a_flood_of_broadcasts() -> None:
    held("broadcasts")
