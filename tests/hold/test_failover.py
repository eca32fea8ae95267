"""The short form of `bench/hold.py --only failover`."""

from __future__ import annotations

from tests.hold.short import held


def test_failover_loses_no_acknowledged_contract() -> None:
    held("failover")
