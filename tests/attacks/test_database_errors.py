"""Whatever a database says to a command, the command says it in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.run import ccp
from tests.server.storage.made import new_database, sql

BREAKS = (
    ("alter table party rename column roles to something", ("party", "list")),
    ("drop table trust_anchor", ("trust", "list")),
    ("drop table peer", ("peer", "list")),
    ("drop table delivery", ("events", "list")),
    ("drop table audit", ("audit", "verify")),
    ("drop table token_key", ("keys", "list")),
    ("drop table contract", ("purge", "--yes")),
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new database with the schema."""
    if request.param == "sqlite":
        return new_database(tmp_path)
    made: str = request.getfixturevalue("postgres").database()
    return made


@pytest.mark.parametrize(("damage", "command"), BREAKS, ids=[damage for damage, _ in BREAKS])
def test_schema_that_is_damaged_gives_a_sentence_and_no_traceback(
    url: str, damage: str, command: tuple[str, ...]
) -> None:
    sql(url, damage)
    done = ccp(*command, env={"CCP_DATABASE": url})
    assert done.status == 1
    (line,) = done.err.splitlines()
    assert line.startswith("ccp: ")
