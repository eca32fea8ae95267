"""Many partners, see `bench/holds/partners.py`."""

from __future__ import annotations

from tests.hold.short import held


def test_latency_is_independent_of_the_number_of_partners() -> None:
    held("partners")
