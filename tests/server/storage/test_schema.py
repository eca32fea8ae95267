"""Schema on SQLite: migrations, and databases that the store refuses."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import stat
from contextlib import closing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory

from ccp.errors import ConfigurationError
from ccp.server.storage import connect
from ccp.server.storage.engine import schema, sqlite_connection
from ccp.server.storage.queries import contracts
from tests.server.storage.made import AT, CAR, new_database, opened, read, sql, variant, with_store, write

SPAWN = multiprocessing.get_context("spawn")


def described(url: str) -> set[tuple[str, ...]]:
    return {tuple(map(str, row)) for row in sql(url, "select type, name, sql from sqlite_master")}


def open_and_close(url: str) -> None:
    with_store(url, lambda store: store.read(contracts.by_vehicle(CAR)))


def test_head_is_the_last_migration() -> None:
    script = ScriptDirectory.from_config(schema.migrations("sqlite:///unused.db"))
    assert script.get_heads() == [schema.head()]


def test_upgrade_creates_the_schema_and_is_idempotent(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ccp.db'}"
    assert schema.revision(url) is None
    assert schema.upgrade(url) == (None, schema.head())
    write(url, contracts.publish(variant(), AT))
    before = described(url)
    assert schema.upgrade(url) == (schema.head(), schema.head())
    assert described(url) == before
    assert [found.emaid for found in read(url, contracts.by_vehicle(CAR))] == [variant().emaid]


def test_downgrade_to_base_and_upgrade_round_trip(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    before = described(url)
    command.downgrade(schema.migrations(url), "base")
    assert {row[1] for row in described(url) if not row[1].startswith("sqlite_")} == {"alembic_version"}
    assert schema.revision(url) is None
    assert schema.upgrade(url) == (None, schema.head())
    assert described(url) == before
    open_and_close(url)


def test_database_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    url = new_database(tmp_path)

    async def hold(store: object) -> None:
        modes.update({file.name: stat.S_IMODE(file.stat().st_mode) for file in list(tmp_path.iterdir())})  # noqa: ASYNC240

    modes: dict[str, int] = {}
    with_store(url, hold)
    assert modes == dict.fromkeys(("ccp.db", "ccp.db-wal", "ccp.db-shm", "ccp.db-writelock"), 0o600)


def test_store_refuses_a_missing_database(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"There is no database at .*none\.db; 'ccp db upgrade' makes one\."):
        open_and_close(f"sqlite:///{tmp_path / 'none.db'}")
    assert not any(tmp_path.iterdir())


def test_store_refuses_a_database_without_schema(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "ccp.db")) as connection:
        connection.execute("create table other (x)")
    message = f"The database schema is absent, this release needs {schema.HEAD}; run 'ccp db upgrade'"
    with pytest.raises(ConfigurationError, match=message):
        open_and_close(f"sqlite:///{tmp_path / 'ccp.db'}")


def test_store_refuses_an_older_schema_and_names_both_revisions(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    sql(url, "update alembic_version set version_num = '0000'")
    with pytest.raises(ConfigurationError, match=f"schema is 0000, this release needs {schema.HEAD}"):
        open_and_close(url)


def test_store_opens_a_newer_schema(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    sql(url, "update alembic_version set version_num = '9999'")
    open_and_close(url)


def test_upgrade_refuses_a_newer_schema(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    sql(url, "update alembic_version set version_num = '9999'")
    with pytest.raises(ConfigurationError, match=f"schema is 9999, newer than this release's {schema.HEAD}"):
        schema.upgrade(url)


def test_database_of_another_kind_of_file_is_refused_and_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "ccp.db"
    file.write_bytes(b"no database at all, but longer than the header of one" * 30)
    data = file.read_bytes()
    for use in (open_and_close, schema.upgrade, schema.revision):
        with pytest.raises(ConfigurationError, match="is not an opnc-ccp database"):
            use(f"sqlite:///{file}")
    assert file.read_bytes() == data


def test_database_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    for use in (open_and_close, schema.upgrade):
        with pytest.raises(ConfigurationError, match=r"The database .* cannot be read"):
            use(f"sqlite:///{tmp_path}")


def test_upgrade_needs_an_existing_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be created: No such file or directory\."):
        schema.upgrade(f"sqlite:///{tmp_path / 'none' / 'ccp.db'}")


@pytest.mark.parametrize("url", ["mysql://ccp:secret@localhost/ccp", "sqlite://ccp.db", "ccp.db", ""])
def test_engine_that_is_unknown_is_refused_without_the_password(url: str) -> None:
    for use in (connect, schema.revision, schema.upgrade):
        with pytest.raises(ConfigurationError, match="No storage engine for the database URL") as caught:
            use(url)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["a b", "100%", "what?", "sharp#1", "ключ", "semi;colon&x=1"])
def test_database_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    url = new_database(folder)
    assert schema.revision(url) == schema.head()
    open_and_close(url)
    assert {file.name.split("-")[0] for file in folder.iterdir()} == {"ccp.db"}


@pytest.mark.parametrize("table", ["change_count", "delivery"])
def test_upgrade_that_fails_leaves_nothing(tmp_path: Path, table: str) -> None:
    url = f"sqlite:///{tmp_path / 'ccp.db'}"
    # A table that the first migration, or the last one, makes is there already, so it fails in its middle.
    with closing(sqlite3.connect(tmp_path / "ccp.db")) as connection:
        connection.execute(f"create table {table} (x)")
    with pytest.raises(ConfigurationError, match=f"cannot be upgraded: table {table} already exists"):
        schema.upgrade(url)
    sql(url, f"drop table {table}")
    assert described(url) == set()
    assert schema.upgrade(url) == (None, schema.head())


def _upgrade_and_open(url: str, barrier: Barrier) -> None:
    barrier.wait()
    schema.upgrade(url)
    barrier.wait()
    open_and_close(url)


def test_upgrade_by_concurrent_processes_succeeds(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ccp.db'}"
    barrier = SPAWN.Barrier(3)
    processes = [SPAWN.Process(target=_upgrade_and_open, args=(url, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert schema.revision(url) == schema.head()


def test_database_that_is_locked_is_refused_after_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = new_database(tmp_path)
    with closing(sqlite3.connect(tmp_path / "ccp.db")) as connection:
        connection.execute("pragma journal_mode = delete")
    # A reader that holds its lock: the switch to write-ahead logging waits for it, and then gives up.
    with closing(sqlite3.connect(tmp_path / "ccp.db", isolation_level=None)) as reader:
        reader.execute("begin")
        reader.execute("select * from vehicle").fetchall()
        monkeypatch.setattr(sqlite_connection, "_OPEN_TIMEOUT", 0.2)
        with pytest.raises(ConfigurationError, match="cannot be opened: database is locked"):
            open_and_close(url)
    open_and_close(url)


def test_store_opens_again_after_close(tmp_path: Path) -> None:
    url = new_database(tmp_path)

    async def twice() -> None:
        store = connect(url)
        for _ in range(2):
            await store.open()
            await store.write(contracts.publish(variant(), AT))
            await store.close()
            await store.close()

    asyncio.run(twice())


def test_upgrade_leaves_no_open_files(tmp_path: Path) -> None:
    url = new_database(tmp_path)

    async def use() -> None:
        async with opened(url) as store:
            await store.write(contracts.publish(variant(), AT))

    asyncio.run(use())
    # The last connection takes the log with it; what writers stand in line by stays, and has nothing in it.
    assert {file.name: file.stat().st_size > 0 for file in tmp_path.iterdir()} == {
        "ccp.db": True,
        "ccp.db-writelock": False,
    }
