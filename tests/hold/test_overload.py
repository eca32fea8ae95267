"""The short form of the experiment on overload."""

from __future__ import annotations

from tests.hold.short import held


def test_an_overloaded_pool_answers_what_it_can_and_refuses_the_rest() -> None:
    held("overload")
