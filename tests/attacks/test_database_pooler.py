"""Behind PgBouncer in transaction mode: every command, a server under load, and what stays on the server's sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ccp.errors import Unavailable
from ccp.server.access.client_secrets import new_secret
from ccp.server.domain.parties import PartyRole
from ccp.server.sandbox.local_pool import loopback, running
from ccp.server.sandbox.setup import Member, World, register
from ccp.server.storage import connect
from ccp.server.storage.engine import schema
from ccp.server.storage.engine.postgres import PostgresStore
from ccp.server.storage.engine.schema_version import HEAD
from ccp.server.storage.engine.time_limits import TimeLimits
from ccp.server.storage.queries import contracts
from ccp.server.storage.queries import parties as queries
from ccp.testing.pki import PKI
from tests.cli.run import ccp, ccp_error, ccp_ok
from tests.databases import Server, sql
from tests.pgbouncer import needs_pgbouncer, pgbouncer
from tests.server.storage.made import CAR
from tests.server.storage.postgres_stores import until_served
from tests.world import AT, Pool, opened, parties, party, start

pytestmark = needs_pgbouncer


@pytest.fixture(scope="module")
def pooled(postgres: Server) -> Iterator[tuple[str, str]]:
    """The URL of an empty database through the pooler, and the server's own."""
    direct = postgres.database(empty=True)
    # Few sessions, which clients take turns at, and what a client left on one of them stays there.
    with pgbouncer(direct, size=3, server_lifetime="3600", server_idle_timeout="3600") as url:
        yield url, direct


def left_behind(url: str, statements: int = 0) -> None:
    """No session of the server has a prepared statement or a changed setting, whichever of them is asked."""

    async def ask() -> list[tuple[int, str, str]]:
        connections = [await asyncpg.connect(url, statement_cache_size=0) for _ in range(3)]
        try:
            found = []
            transactions = [connection.transaction() for connection in connections]
            for connection, transaction in zip(connections, transactions, strict=True):
                await transaction.start()  # So that each has a session of the server of its own.
                found.append(
                    (
                        await connection.fetchval("select count(*) from pg_prepared_statements where name <> ''"),
                        await connection.fetchval("show lock_timeout"),
                        await connection.fetchval("show statement_timeout"),
                    )
                )
            return found
        finally:
            for connection in connections:
                connection.terminate()

    assert asyncio.run(ask()) == [(statements, "0", "0")] * 3


def test_commands_all_work_behind_a_pooler_and_leave_nothing_on_its_sessions(
    pooled: tuple[str, str], tmp_path: Path, pkis: dict[str, PKI]
) -> None:
    url, direct = pooled
    env = {"CCP_DATABASE": url, "CCP_BASE_URL": "https://pool.example"}
    roots = tmp_path / "roots"
    roots.mkdir()
    (roots / "v2g.pem").write_bytes(pkis["iso2"].v2g_root.certificate.pem())
    assert ccp("db", "status", env=env).out == f"found none, needed {HEAD}\n"
    assert ccp_ok("db", "upgrade", env=env).out == f"The schema was absent and is now {HEAD}.\n"
    assert ccp_ok("db", "upgrade", env=env).out == f"The schema is {HEAD}.\n"
    assert ccp_ok("db", "status", env=env).out == f"found {HEAD}, needed {HEAD}\n"
    left_behind(url)
    for command in (
        ("party", "add", "Example", "--role", "emsp", "--provider-id", "DEEXA"),
        ("party", "list"),
        ("trust", "add", roots, "--role", "v2g"),
        ("trust", "list"),
        ("peer", "list"),
        ("keys", "list"),
        ("keys", "rotate"),
        ("events", "list"),
        ("webhook", "list"),
        ("purge", "--yes"),
        ("audit", "verify"),
        ("audit", "export", tmp_path / "audit.jsonl"),
        ("export", tmp_path / "out.jsonl"),
        ("import", tmp_path / "out.jsonl"),
        ("erase", "--emaid", "DEEXAT00000001", "--yes"),
        ("backup", tmp_path / "copy.db"),
        ("db", "citus-distribute"),
        ("db", "downgrade", "base"),
        ("party", "disable", "Example"),
    ):
        done = ccp(*command, env=env)
        assert done.status in (0, 1, 2), command
        assert "Traceback" not in done.err, (command, done.err)
        assert "refuses the command" not in done.err, (command, done.err)
        if command[0] not in ("backup", "db", "audit", "keys", "erase"):
            assert done.status == 0, (command, done.err)
    assert "SQLite" in ccp_error("backup", tmp_path / "copy.db", env=env)
    left_behind(url)
    assert sql(direct, "select enabled from party where name = 'Example'") == [(False,)]
    assert ccp_ok("db", "downgrade", "base", "--yes", env=env).out == f"The schema was {HEAD} and is now absent.\n"
    ccp_ok("db", "upgrade", env=env)


def test_pool_behind_a_pooler_publishes_and_delivers_for_many_at_once(
    pooled: tuple[str, str], pkis: dict[str, PKI]
) -> None:
    url, direct = pooled
    schema.upgrade(url)
    with start(pkis) as like, loopback() as (listening, base_url):
        settings = like.settings.model_copy(update={"database": url, "base_url": base_url, "database_connections": 10})
        world = World(
            {name: pki for name, pki in pkis.items() if name != "stranger"},
            tuple(Member(each, new_secret()) for each in (*parties(), party("late", PartyRole.CPO, operators="DEEXL"))),
        )

        async def fill() -> None:
            async with opened(settings) as store:
                await register(store, world, AT)

        asyncio.run(fill())
        with running(settings, listening):
            pool = Pool(base_url, settings, world, like.database, like.http.__class__(base_url=base_url, timeout=20))
            cars = [pool.car() for _ in range(24)]
            contracts = [pool.contract(car) for car in cars]
            pool.cps, pool.cpo  # noqa: B018  both have their token before threads share them

            def go(place: int) -> Any:
                put = pool.cps.put("/signedcontractdata", json=contracts[place].body)
                assert put.status_code == 201, put.text
                (item,) = pool.ask(cars[place])
                return item["emaid"]

            with ThreadPoolExecutor(12) as threads:
                assert list(threads.map(go, range(24))) == [contract.emaid for contract in contracts]
            assert pool.http.get("/health/ready").json() == {"status": "ready"}
            text = pool.http.get("/metrics").text
            assert 'ccp_task_failures_total{task="' not in text, [line for line in text.splitlines() if "task" in line]
            pool.close()
    left_behind(url)
    assert sql(direct, "select count(*) from contract") == [(24,)]


def test_server_without_a_pooler_is_told_from_one_with(pooled: tuple[str, str], postgres: Server) -> None:
    async def found(url: str) -> bool:
        store = connect(url)
        await store.open()
        await store.close()
        assert isinstance(store, PostgresStore)
        return store._pool.pooled

    url, direct = pooled
    schema.upgrade(url)
    assert [asyncio.run(found(each)) for each in (url, direct)] == [True, False]


def test_database_pooler_that_hides_itself_is_found_by_the_servers_answers(
    pooled: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(connection: Any) -> bool:
        return False

    url, _ = pooled
    schema.upgrade(url)
    monkeypatch.setattr("ccp.server.storage.engine.postgres_pooler.is_between", never)

    async def use() -> None:
        stores = [connect(url, 4) for _ in range(4)]
        try:
            for store in stores:
                await store.open()
            # Which session of the server a statement meets is chance: until each has met one that does not know it.
            async with asyncio.timeout(60):
                while not all(isinstance(store, PostgresStore) and store._pool.pooled for store in stores):
                    asked = (store.read(queries.list_all()) for store in stores for _ in range(4))
                    assert len({str(found) for found in await asyncio.gather(*asked)}) == 1
        finally:
            for store in stores:
                await store.close()

    asyncio.run(use())


def test_database_server_behind_a_pooler_that_is_silent_is_refused_and_found_again(
    pooled: tuple[str, str], postgres: Server
) -> None:
    url, _ = pooled
    schema.upgrade(url)

    async def use() -> None:
        store = connect(url, 3, TimeLimits(read=0.6))
        assert isinstance(store, PostgresStore)
        await store.open()
        try:
            await store.read(contracts.by_vehicle(CAR))
            postgres.pause()
            try:
                async with asyncio.timeout(20):
                    while not store._pool.silent:  # The pooler goes on accepting connections.
                        with pytest.raises(Unavailable):
                            await store.read(contracts.by_vehicle(CAR))
            finally:
                postgres.resume()
            assert await until_served(store, 20) < 20
        finally:
            await store.close()

    asyncio.run(use())
