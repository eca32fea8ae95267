"""A flood of broadcasts, see `bench/holds/broadcasts.py`."""

from __future__ import annotations

from tests.hold.short import held


def test_broadcast_flood_hardly_delays_other_vehicles() -> None:
    held("broadcasts")
