"""Database URLs with several hosts: which host is used."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from ccp.errors import ConfigurationError, Unavailable
from ccp.server.storage.engine import postgres_hosts
from ccp.server.storage.engine.postgres_hosts import Hosts
from ccp.server.storage.queries import contracts
from tests.databases import Server, replicated, sql
from tests.server.storage.made import AT, CAR, FIRST, variant
from tests.server.storage.postgres_stores import LIMITS, SPARE, opened, timed, until_served
from tests.server.storage.proxy import between


def both(*ports: int, name: str, more: str = "") -> str:
    return f"postgresql://ccp@{','.join(f'127.0.0.1:{port}' for port in ports)}/{name}{more}"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, Server, str]]:
    with replicated(synchronous=False) as found:
        yield found


@pytest.fixture
def silent() -> Iterator[int]:
    """A port at which the kernel accepts connections that no process reads."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def until_read_only(url: str) -> None:
    deadline = time.monotonic() + 10
    while sql(url, "show default_transaction_read_only") != [("on",)]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://u:p@a/x", []),
        ("postgresql:///x?host=/var/run/postgresql", []),
        ("postgresql://u:p%40@a,b:6432/x", [("a", 5432), ("b", 6432)]),
        ("postgresql://u@[::1]:7000,[fe80::1]/x", [("::1", 7000), ("fe80::1", 5432)]),
        ("postgresql:///x?host=a,b&port=1,2", [("a", 1), ("b", 2)]),
        ("postgresql:///x?host=a,b&port=7", [("a", 7), ("b", 7)]),
    ],
)
def test_hosts_are_parsed_as_by_libpq(url: str, hosts: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PGHOST", "PGPORT", "PGTARGETSESSIONATTRS"):
        monkeypatch.delenv(variable, raising=False)
    assert list(postgres_hosts._several_hosts(url)) == hosts
    assert Hosts(url).writable_only is bool(hosts)
    assert not Hosts(f"{url}{'&' if '?' in url else '?'}target_session_attrs=any").writable_only


def test_hosts_a_silent_first_host_delays_little(pair: tuple[Server, Server, str], silent: int) -> None:
    primary, _, name = pair

    async def run() -> None:
        hosts = Hosts(both(silent, primary.port, name=name))
        seconds = []
        for _ in range(3):
            began = time.monotonic()
            (await hosts.connect(5, prepare=False)).terminate()
            seconds.append(time.monotonic() - began)
        assert max(seconds) < postgres_hosts.HEAD_START + SPARE
        assert min(seconds[1:]) < postgres_hosts.HEAD_START, "the one that answered is tried first the next time"

    asyncio.run(run())


def test_hosts_only_a_writable_one_is_used(pair: tuple[Server, Server, str]) -> None:
    primary, standby, name = pair

    async def port(url: str) -> int:
        connection = await Hosts(url).connect(5, prepare=False)
        found: int = await connection.fetchval("select inet_server_port()")
        connection.terminate()
        return found

    assert asyncio.run(port(both(standby.port, primary.port, name=name))) == primary.port
    assert asyncio.run(port(both(standby.port, primary.port, name=name, more="?target_session_attrs=any"))) in (
        standby.port,
        primary.port,
    )
    with pytest.raises(asyncpg.TargetServerAttributeNotMatched):
        asyncio.run(port(both(standby.port, standby.port, name=name)))


def test_hosts_without_a_primary_refuse_to_start(pair: tuple[Server, Server, str]) -> None:
    _, standby, name = pair

    async def run() -> None:
        async with opened(both(standby.port, standby.port, name=name)):
            pass

    with pytest.raises(ConfigurationError, match="None of the hosts"):
        asyncio.run(run())


def test_hosts_a_server_that_becomes_read_only_gets_no_write(
    pair: tuple[Server, Server, str],
) -> None:
    primary, _, name = pair
    url = both(primary.port, primary.port, name=name)
    plain = primary.url(name)

    async def run() -> None:
        async with opened(url) as store:
            await asyncio.gather(*(store.read(contracts.by_vehicle(CAR)) for _ in range(3)))
            await asyncio.to_thread(sql, plain, "alter system set default_transaction_read_only = on")
            await asyncio.to_thread(sql, plain, "select pg_reload_conf()")
            try:
                await asyncio.to_thread(until_read_only, plain)
                outcome, _ = await timed(store.write(contracts.publish(variant(), AT)))
                assert isinstance(outcome, Unavailable)
                # An answer that comes with the news is the last one of its connection.
                await timed(store.read(contracts.by_vehicle(CAR)))
                assert not any(connection.read_only for connection, _ in store._pool._idle or ())
            finally:
                connection = await asyncpg.connect(plain)
                await connection.execute("set default_transaction_read_only = off")
                await connection.execute("alter system reset default_transaction_read_only")
                await connection.execute("select pg_reload_conf()")
                await connection.close()
            await until_served(store)
            deadline = time.monotonic() + 10
            while isinstance((await timed(store.write(contracts.publish(variant(), AT))))[0], Unavailable):
                assert time.monotonic() < deadline

    asyncio.run(run())
    assert sql(plain, "select emaid from contract") == [(FIRST,)]
    sql(plain, "delete from contract")


def test_hosts_a_promoted_standby_is_found() -> None:
    with replicated() as (primary, standby, name):

        async def run() -> None:
            async with between(primary.url(name)) as proxy:
                port = int(proxy.url.rsplit(":", 1)[1].split("/")[0])
                async with opened(both(port, standby.port, name=name)) as store:
                    await store.write(contracts.publish(variant(), AT))
                    proxy.swallow = True
                    outcome, seconds = await timed(store.read(contracts.by_vehicle(CAR)))
                    assert isinstance(outcome, Unavailable)
                    assert seconds < LIMITS.read + SPARE
                    await asyncio.to_thread(primary.stop)
                    await asyncio.to_thread(standby.promote)
                    assert await until_served(store) < 2 + SPARE
                    assert [each.emaid for each in await store.read(contracts.by_vehicle(CAR))] == [FIRST]
                    assert await store.write(contracts.publish(variant(), AT))

        asyncio.run(run())
