"""Schema on PostgreSQL: migrations, refused databases, and error sentences."""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import asyncpg
import pytest

from ccp.errors import ConfigurationError
from ccp.server.storage import connect
from ccp.server.storage.engine import schema
from ccp.server.storage.engine.postgres_commands import connect as connect_for_commands
from ccp.server.storage.engine.schema import HEAD
from ccp.server.storage.queries import contracts
from tests.databases import Server, sql
from tests.server.storage.made import (
    AT,
    CAR,
    new_database,
    published_by_previous_release,
    read,
    variant,
    with_store,
    write,
)

SPAWN = multiprocessing.get_context("spawn")


def described(url: str) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    columns = sql(
        url,
        "select table_name::text, column_name::text, data_type::text, is_nullable::text "
        "from information_schema.columns where table_schema = 'public' order by 1, 2",
    )
    return columns, sql(url, "select indexdef::text from pg_indexes where schemaname = 'public' order by 1")


def open_and_close(url: str) -> None:
    with_store(url, lambda store: store.read(contracts.by_vehicle(CAR)))


def sentence(url: str, use: object = open_and_close) -> str:
    assert callable(use)
    with pytest.raises(ConfigurationError) as caught:
        use(url)
    assert "secret" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def empty(postgres: Server) -> str:
    return postgres.database(empty=True)


# --- Migrations ------------------------------------------------------------------------------------------------------


def test_upgrade_creates_the_schema_and_is_idempotent(empty: str) -> None:
    assert schema.revision(empty) is None
    assert schema.upgrade(empty) == (None, HEAD)
    write(empty, contracts.publish(variant(), AT))
    before = described(empty)
    assert schema.upgrade(empty) == (HEAD, HEAD)
    assert described(empty) == before
    assert [found.emaid for found in read(empty, contracts.by_vehicle(CAR))] == [variant().emaid]


def test_downgrade_to_base_and_upgrade_round_trip(postgres: Server) -> None:
    url = postgres.database()
    before = described(url)
    assert schema.downgrade(url, schema.BASE) == (HEAD, None)
    assert {row[0] for row in described(url)[0]} == {"alembic_version"}
    assert schema.revision(url) is None
    assert schema.upgrade(url) == (None, HEAD)
    assert described(url) == before


def test_migration_has_no_statement_timeout(postgres: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres.database()
    schema.downgrade(url, "0010")
    monkeypatch.setattr("ccp.server.storage.engine.postgres_hosts.COMMAND_TIMEOUT", 1.0)
    monkeypatch.setattr(connect_for_commands, "__defaults__", (1.0,))

    async def run() -> None:
        locking = await asyncpg.connect(url)
        try:
            async with locking.transaction():
                await locking.execute("lock table delivery in access exclusive mode")
                upgrading = asyncio.ensure_future(asyncio.to_thread(schema.upgrade, url))
                await locking.execute("select pg_sleep(3)")
                assert not upgrading.done()
            assert await upgrading == ("0010", HEAD)
        finally:
            await locking.close()

    asyncio.run(run())


def test_downgrade_by_one_revision_and_upgrade_round_trip(postgres: Server) -> None:
    url = postgres.database()
    before = described(url)
    assert schema.downgrade(url, "0002") == (HEAD, "0002")
    assert sentence(url) == f"The database schema is 0002, this release needs {HEAD}; run 'ccp db upgrade'."
    assert schema.upgrade(url) == ("0002", HEAD)
    assert described(url) == before


def test_schema_is_the_same_on_both_engines(postgres: Server, tmp_path: Path) -> None:
    file, url = new_database(tmp_path), postgres.database()
    theirs = {
        (table, column)
        for (table,) in sql(file, "select name from sqlite_master where type = 'table'")
        for (column,) in sql(file, f"select name from pragma_table_info('{table}')")
    }
    assert {row[:2] for row in described(url)[0]} == theirs


def test_upgrade_that_fails_leaves_nothing(empty: str) -> None:
    sql(empty, "create table change_count (x int)")
    with pytest.raises(ConfigurationError, match='cannot be upgraded: relation "change_count" already exists'):
        schema.upgrade(empty)
    sql(empty, "drop table change_count")
    assert described(empty) == ([], [])
    assert schema.upgrade(empty) == (None, HEAD)


def _upgrade_and_open(url: str, barrier: Barrier) -> None:
    barrier.wait()
    schema.upgrade(url)
    barrier.wait()
    open_and_close(url)


def test_upgrade_by_concurrent_processes_succeeds(empty: str) -> None:
    barrier = SPAWN.Barrier(3)
    processes = [SPAWN.Process(target=_upgrade_and_open, args=(empty, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert schema.revision(empty) == HEAD


def test_upgrade_does_not_disturb_readers_and_writers(postgres: Server) -> None:
    """The older release goes on while the schema is expanded under it."""
    url = postgres.database()
    schema.downgrade(url, "0002")
    # For the start only: contracts need no more.
    sql(url, f"update alembic_version set version_num = '{HEAD}'")
    sql(url, "create table storage_key as select 'current' as name, 'none' as key_id, false as chosen")

    async def run() -> None:
        store = connect(url, 3)
        await store.open()
        sql(url, "drop table storage_key")
        sql(url, "update alembic_version set version_num = '0002'")
        upgrading = asyncio.create_task(asyncio.to_thread(schema.upgrade, url))
        count = 0
        while not upgrading.done() or count < 20:
            await store.write(published_by_previous_release(variant(), AT))
            assert len(await store.read(contracts.by_emaid(variant().emaid))) == 1
            count += 1
        assert await upgrading == ("0002", HEAD)
        await store.close()

    asyncio.run(run())


# --- What is refused -------------------------------------------------------------------------------------------------


def test_store_refuses_a_missing_or_older_schema(empty: str) -> None:
    assert sentence(empty) == f"The database schema is absent, this release needs {HEAD}; run 'ccp db upgrade'."


def test_store_opens_a_newer_schema_without_migrating_it(postgres: Server) -> None:
    url = postgres.database()
    sql(url, "update alembic_version set version_num = '9999'")
    open_and_close(url)
    assert sentence(url, schema.upgrade) == f"The database schema is 9999, newer than this release's {HEAD}."
    message = sentence(url, lambda url: schema.downgrade(url, "0001"))
    assert message == "The database schema is 9999, which this release does not know how to take back."


@pytest.mark.parametrize("foreign", ["1a2b3c4d5e6f", "head"])
def test_database_of_another_program_is_refused(empty: str, foreign: str) -> None:
    sql(empty, "create table alembic_version (version_num text)")
    sql(empty, f"insert into alembic_version values ('{foreign}')")
    for use in (open_and_close, schema.upgrade, schema.revision, schema.check):
        assert sentence(empty, use) == f"The database is not an opnc-ccp database: its schema is {foreign}."


def test_database_without_utf8_is_refused(postgres: Server) -> None:
    sql(postgres.url("postgres"), "create database latin encoding 'LATIN1' template template0")
    message = sentence(postgres.url("latin"), schema.upgrade)
    assert message == "The database's encoding is LATIN1; it has to be UTF8."


def test_upgrade_without_privileges_explains_the_failure(postgres: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = postgres.database(empty=True)
    sql(empty, "revoke create on schema public from public")
    monkeypatch.setenv("PGPASSWORD", Server.PASSWORD)
    message = sentence(empty.replace("//ccp@", "//careful@"), schema.upgrade)
    assert message == "The database cannot be upgraded: permission denied for schema public."


def test_password_is_read_from_the_url_or_the_environment(postgres: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres.url(postgres.database().rsplit("/", 1)[1], "careful")
    sql(url.replace("careful", "ccp"), "grant select on all tables in schema public to careful")
    monkeypatch.setenv("PGPASSWORD", "not-the-secret")
    for use in (open_and_close, schema.revision):
        message = sentence(url, use)
        assert (
            message == 'The database server refuses the connection: password authentication failed for user "careful".'
        )
    open_and_close(url.replace("careful@", f"careful:{Server.PASSWORD}@"))
    monkeypatch.setenv("PGPASSWORD", Server.PASSWORD)
    open_and_close(url)
    assert schema.revision(url.replace("postgresql:", "postgres:")) == HEAD


def test_postgres_connection_that_fails_is_explained(postgres: Server) -> None:
    refused = "The database server refuses the connection: "
    unreachable = "The database server cannot be reached: "
    for url, message in {
        postgres.url("nowhere"): f'{refused}database "nowhere" does not exist.',
        postgres.url("postgres", "nobody"): f'{refused}role "nobody" does not exist.',
        "postgresql://ccp:secret@127.0.0.1:1/ccp": unreachable,
        "postgresql://ccp:secret@unknown.invalid/ccp": unreachable,
        postgres.url("postgres") + "?sslmode=require": unreachable,
        "postgresql://ccp:secret@127.0.0.1:port/ccp": "The database URL cannot be used",
        "postgresql://ccp:secret@127.0.0.1/ccp?sslmode=secret": "sslmode is one of disable, allow,",
    }.items():
        for use in (open_and_close, schema.revision, schema.upgrade, schema.check):
            assert sentence(url, use).startswith(message), url
