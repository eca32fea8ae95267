"""ccp db: going back, and PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccp.server.storage.engine import schema
from tests.cli.run import ccp_error, ccp_ok
from tests.databases import Server
from tests.server.storage.made import new_database


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return new_database(tmp_path)
    made: str = request.getfixturevalue("postgres").database()
    return made


def test_db_downgrade_needs_confirmation(url: str) -> None:
    env = {"CCP_DATABASE": url}
    assert "delete the tables and columns that came after" in ccp_error("db", "downgrade", "0001", env=env)
    assert schema.revision(url) == schema.HEAD
    done = ccp_ok("db", "downgrade", "0001", "--yes", env=env)
    assert done.out == f"The schema was {schema.HEAD} and is now 0001.\n"
    assert ccp_ok("db", "upgrade", env=env).out == f"The schema was 0001 and is now {schema.HEAD}.\n"
    assert (
        ccp_ok("db", "downgrade", "base", "--yes", env=env).out == f"The schema was {schema.HEAD} and is now absent.\n"
    )


@pytest.mark.parametrize("to", ["9999", "0004x", "head", "-1"])
def test_db_downgrade_accepts_only_older_revisions(url: str, to: str) -> None:
    sentence = ccp_error("db", "downgrade", "--yes", "--", to, env={"CCP_DATABASE": url})
    assert sentence.startswith(f"The database schema is {schema.HEAD}; it can be taken back to: base, 0001, 0002")
    assert schema.revision(url) == schema.HEAD


def test_serve_creates_no_schema_in_postgresql(postgres: Server) -> None:
    empty = postgres.database(empty=True)
    sentence = ccp_error("serve", env={"CCP_DATABASE": empty})
    assert sentence == f"The database schema is absent, this release needs {schema.HEAD}; run 'ccp db upgrade'."
    assert schema.revision(empty) is None


def test_db_citus_distribute_needs_citus(url: str) -> None:
    assert "extension citus" in ccp_error("db", "citus-distribute", env={"CCP_DATABASE": url})
