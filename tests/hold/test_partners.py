"""Many partners, see `bench/holds/partners.py`."""

from __future__ import annotations

from tests.hold.short import held


def test_partner_number_does_not_change_the_latency() -> None:
    held("partners")
