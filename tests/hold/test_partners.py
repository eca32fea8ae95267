"""Many partners, see `bench/holds/partners.py`."""

from __future__ import annotations

from tests.hold.short import held


def test_requests_do_not_feel_how_many_partners_there_are() -> None:
    held("partners")
