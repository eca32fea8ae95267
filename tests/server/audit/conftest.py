"""Fixtures for the tests of the audit trail and of other recorded rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.databases import Server
from tests.server.storage.made import new_database


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new database of each engine, with the newest schema."""
    if request.param == "sqlite":
        return new_database(tmp_path)
    server: Server = request.getfixturevalue("postgres")
    return server.database()
