"""The short form of `bench/hold.py --only startup`."""

from __future__ import annotations

from tests.hold.short import held


def test_small_commands_and_starts_of_workers_cost_little() -> None:
    held("startup")
