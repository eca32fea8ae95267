"""The SQLite writer thread and the purge, see `bench/holds/sqlite.py`."""

from __future__ import annotations

from tests.hold.short import held


def test_requests_are_answered_while_the_writer_fails_and_contracts_are_purged() -> None:
    held("sqlite")
