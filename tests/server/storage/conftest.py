"""Fixture for tests that run on every storage engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.storage.made import new_database


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a new database with the schema."""
    if request.param == "sqlite":
        return new_database(tmp_path)
    made: str = request.getfixturevalue("postgres").emptied()
    return made
