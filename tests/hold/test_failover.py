"""The short form of `bench/hold.py --only failover`."""

from __future__ import annotations

from tests.hold.short import held


def test_a_killed_primary_loses_no_acknowledged_contract() -> None:
    held("failover")
