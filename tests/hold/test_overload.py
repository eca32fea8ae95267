"""The short form of `bench/hold.py --only overload`."""

from __future__ import annotations

from tests.hold.short import held


def test_overload_is_shed_with_503() -> None:
    held("overload")
