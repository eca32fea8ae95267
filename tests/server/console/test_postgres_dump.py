"""The recipe of docs/database.md for a restored dump of PostgreSQL, as far as sessions of the console concern it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ccp.server.sandbox.local_pool import loopback, running
from ccp.testing.pki import PKI
from tests.databases import Server, binaries, sql
from tests.server.console.browsing import Browser, admin, logged_in, outside
from tests.world import start

DOCUMENT = Path(__file__).parents[3] / "docs" / "database.md"


def test_session_of_a_restored_dump_ends_with_the_documented_statement(postgres: Server, pkis: dict[str, PKI]) -> None:
    folder = binaries()
    if folder is None or not (folder / "pg_dump").exists():
        pytest.skip("pg_dump is not installed")
    source, target = postgres.database(), postgres.database(empty=True)
    dump = postgres.own_folder("sessions") / "ccp.dump"
    with start(pkis, [admin()], console=True, database=source) as pool, logged_in(pool) as person:
        postgres.run("pg_dump", "--format=custom", f"--file={dump}", f"--dbname={source}")
        cookies = {"ccp-console": person.cookie}
        person.act("/overview", "/logout")
    postgres.run("pg_restore", "--exit-on-error", f"--dbname={target}", dump)
    documented = re.findall(r'psql "\$DATABASE_URL" -c "(.*)"', DOCUMENT.read_text("utf-8"))
    assert len(documented) == 1
    settings = pool.settings.model_copy(update={"database": target})
    with (
        loopback() as (listening, url),
        running(settings, listening),
        Browser(url, cookies=cookies) as restored,
    ):
        assert restored.get("/overview").status_code == 200  # Why the recipe has the statement.
        sql(target, documented[0])
        assert outside(restored.get("/overview"))
