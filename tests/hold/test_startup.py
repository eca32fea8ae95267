"""The short form of `bench/hold.py --only startup`."""

from __future__ import annotations

from tests.hold.short import held


def test_startup_of_commands_and_workers_is_cheap() -> None:
    held("startup")
