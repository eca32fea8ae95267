# ruff: noqa: F401  what is imported is run
"""Declarations on PostgreSQL.

This module imports tests of another test module on purpose: pytest runs those that reach the store again, on PostgreSQL
in place of the default engine, SQLite.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from ccp.testing.pki import PKI
from tests.cli.run import COMMAND, environment
from tests.databases import Server
from tests.server.declaration.files import DECLARED, VARIABLES, prepare_files, recorded
from tests.server.declaration.test_documented_file import (
    place,
    test_apply_changes_of_a_declared_secret_let_the_previous_one_work,
    test_apply_of_the_documented_file_lets_a_running_pool_serve_a_car,
    test_apply_prune_ends_the_access_of_a_party_within_seconds,
    test_apply_that_fails_leaves_the_running_pool_as_it_is,
)


@pytest.fixture
def database(postgres: Server) -> str:
    return postgres.database()


def test_applies_at_once_on_postgres_add_everything_once(database: str, tmp_path: Path, pkis: dict[str, PKI]) -> None:
    prepare_files(tmp_path, pkis["iso2"])
    (tmp_path / "pool.toml").write_text(DECLARED)
    running = [
        subprocess.Popen(
            [*COMMAND, "apply", "pool.toml", "--json"], env=environment(CCP_DATABASE=database, **VARIABLES),
            stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        )
        for _ in range(3)
    ]  # fmt: skip
    added = [json.loads(process.communicate(timeout=120)[0])["summary"]["add"] for process in running]
    assert sorted(added) == [0, 0, 7]
    assert recorded(database) == ["anchor.added"] * 2 + ["party.added"] * 3 + ["peer.added"] * 2
