"""The short form of the experiment on overload."""

from __future__ import annotations

from tests.hold.short import held


def test_overload_is_shed_with_503() -> None:
    held("overload")
