"""A silent PostgreSQL server: stopped, cut off, or behind a network that drops packets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ccp.errors import Unavailable
from ccp.server.storage.engine import time_limits
from ccp.server.storage.engine.query import SerializationConflict, batchable, long_read, retryable
from ccp.server.storage.engine.time_limits import TimeLimits
from ccp.server.storage.queries import contracts
from tests.databases import Server, sql
from tests.server.storage.made import AT, CAR, FIRST, NO_LIMITS, statements, variant
from tests.server.storage.postgres_stores import LIMITS, SPARE, numbered, opened, sessions, stored, timed, until_served
from tests.server.storage.proxy import Proxy, between

SILENCES: dict[str, tuple[Callable[[Proxy], None], Callable[[Proxy], None]]] = {
    "held": (Proxy.hold, Proxy.let_go),
    "swallowed": (lambda proxy: setattr(proxy, "swallow", True), lambda proxy: setattr(proxy, "swallow", False)),
}


@pytest.fixture
def url(postgres: Server) -> str:
    return postgres.emptied()


@batchable
def lookup() -> Any:
    rows = yield "select $1", ("x",)
    return rows


@pytest.mark.parametrize("silence", SILENCES)
def test_silent_database_ends_every_query_in_time(url: str, silence: str) -> None:
    begin, end = SILENCES[silence]

    async def run() -> None:
        async with between(url) as proxy, opened(proxy.url) as store:
            await asyncio.gather(*(store.read(contracts.by_vehicle(CAR)) for _ in range(3)))
            begin(proxy)
            # More than there are connections, so that most wait for one, and batches for others.
            reads = [timed(store.read(contracts.by_vehicle(CAR))) for _ in range(8)]
            reads += [timed(store.read(lookup())) for _ in range(8)]
            changes = [timed(store.write(contracts.publish(numbered(n), AT, NO_LIMITS))) for n in range(6)]
            outcomes = await asyncio.gather(*reads, *changes)
            for number, (outcome, seconds) in enumerate(outcomes):
                change = number >= len(reads)
                assert isinstance(outcome, Unavailable), outcome
                assert str(outcome) in ((time_limits.NOT_WRITTEN,) if change else (time_limits.NOT_READ,))
                assert seconds < (LIMITS.write if change else LIMITS.read) + SPARE
            end(proxy)
            assert await until_served(store) < 1 + SPARE
            await store.write(contracts.publish(variant(), AT))

    asyncio.run(run())
    assert stored(url) == {FIRST}


@pytest.mark.parametrize("silence", SILENCES)
def test_silent_database_opens_the_circuit(url: str, silence: str) -> None:
    begin, end = SILENCES[silence]

    async def run() -> None:
        async with between(url) as proxy, opened(proxy.url) as store:
            await store.read(contracts.by_vehicle(CAR))
            begin(proxy)
            began = time.monotonic()
            while not store._pool.silent:
                assert time.monotonic() - began < 10
                await timed(store.read(contracts.by_vehicle(CAR)))
            before, began = proxy.connections, time.monotonic()
            for number in range(200):
                _, seconds = await timed(store.write(contracts.publish(numbered(number), AT, NO_LIMITS)))
                assert seconds < LIMITS.read
            probes = 2 + 2 * (time.monotonic() - began)  # Twice a second.
            assert proxy.connections - before <= probes
            end(proxy)
            await until_served(store)

    asyncio.run(run())
    assert stored(url) == set()


def test_circuit_stays_closed_at_a_slow_statement(url: str) -> None:
    async def run() -> None:
        async with opened(url) as store:
            await store.read(contracts.by_vehicle(CAR))
            slow = asyncio.ensure_future(timed(store.read(statements(("select pg_sleep(30)", ())))))
            while not slow.done():
                await store.read(contracts.by_vehicle(CAR))
                await asyncio.sleep(0.01)
            outcome, seconds = slow.result()
            assert isinstance(outcome, Unavailable)
            assert seconds < LIMITS.read + SPARE
            assert store._pool._search is None, "the server answers, so no probe runs"
            deadline = time.monotonic() + 10
            while len(await asyncio.to_thread(sessions, url)) > 2:  # The server ends what it did for the slow one.
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)

    asyncio.run(run())


def test_long_read_has_more_time(url: str) -> None:
    @long_read
    def slow() -> Any:
        rows = yield "select pg_sleep(1), current_setting('statement_timeout')", ()
        return rows[0][1]

    async def run() -> str:
        async with opened(url, limits=TimeLimits(read=0.4, write=0.4, long_read=30)) as store:
            result: str = await store.read(slow())
            return result

    assert asyncio.run(run()) == "30s"


def test_connection_that_was_idle_is_checked_before_use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccp.server.storage.engine.postgres_pool._TRUSTED", 0.0)

    async def run() -> None:
        async with between(url) as proxy, opened(proxy.url, limits=TimeLimits(read=5)) as store:
            await asyncio.gather(*(store.read(statements(("select pg_sleep(0.05)", ()))) for _ in range(3)))
            proxy.swallow = True
            for connection, _ in store._pool._idle or ():
                connection._transport.write(b"")  # type: ignore[attr-defined]
            checking = asyncio.ensure_future(timed(store.read(contracts.by_vehicle(CAR))))
            await asyncio.sleep(0.1)
            proxy.swallow = False  # What was asked is lost, as are the answers; a new connection works.
            found, seconds = await checking
            assert found == []
            assert seconds < 2 + SPARE

    asyncio.run(run())


def test_commit_without_an_answer_is_not_confirmed(url: str) -> None:
    async def run() -> None:
        async with between(url) as proxy, opened(proxy.url) as store:
            await store.write(contracts.publish(variant(), AT))

            def change() -> Any:
                yield from contracts.publish(numbered(1), AT, NO_LIMITS)
                proxy.swallow = True

            outcome, seconds = await timed(store.write(change()))
            assert str(outcome) == time_limits.NOT_CONFIRMED
            assert seconds < LIMITS.write + SPARE

    asyncio.run(run())


def test_command_waits_for_a_silent_server(url: str) -> None:
    limits = TimeLimits(read=20, write=20, connect=2, refuse_while_silent=False)

    async def run() -> None:
        async with between(url) as proxy, opened(proxy.url, limits=limits) as store:
            await store.read(contracts.by_vehicle(CAR))
            proxy.hold()
            changes = [
                asyncio.ensure_future(store.write(contracts.publish(numbered(n), AT, NO_LIMITS))) for n in (1, 2)
            ]
            await asyncio.sleep(1)  # Longer than a request is let wait for a server to be found silent.
            assert not store._pool.silent
            proxy.let_go()
            await asyncio.gather(*changes)

    asyncio.run(run())
    assert len(stored(url)) == 2


def test_silent_database_gives_the_connection_of_a_cancelled_caller_back(url: str) -> None:
    async def run() -> None:
        async with between(url) as proxy, opened(proxy.url, connections=1, limits=TimeLimits(read=5)) as store:
            await store.read(contracts.by_vehicle(CAR))
            proxy.swallow = True
            going = asyncio.ensure_future(store.read(statements(("select 1", ()))))
            await asyncio.sleep(0.05)
            going.cancel()
            with pytest.raises(asyncio.CancelledError):
                await going
            proxy.swallow = False
            assert await until_served(store) < 2 + SPARE

    asyncio.run(run())


def test_connection_of_a_caller_cancelled_during_the_check_is_closed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccp.server.storage.engine.postgres_pool._TRUSTED", 0.0)

    async def run() -> None:
        async with between(url) as proxy, opened(proxy.url, connections=1, limits=TimeLimits(read=5)) as store:
            await store.read(contracts.by_vehicle(CAR))
            ((connection, _),) = store._pool._idle or ()
            proxy.swallow = True
            assert await gone(store.read(statements(("select 1", ()))))
            assert connection.is_closed()

    asyncio.run(run())


def test_connection_of_a_caller_cancelled_during_a_rollback_is_closed(url: str) -> None:
    async def run() -> None:
        async with between(url) as proxy, opened(proxy.url, connections=1, limits=TimeLimits(read=5)) as store:

            def query() -> Any:
                yield "select 1", ()
                proxy.swallow = True
                raise ValueError

            await store.read(contracts.by_vehicle(CAR))
            ((connection, _),) = store._pool._idle or ()
            assert await gone(store.read(query()))
            assert connection.is_closed()
            proxy.swallow = False
            assert await until_served(store) < 2 + SPARE

    asyncio.run(run())


async def gone(work: Awaitable[Any]) -> bool:
    """Whether a caller that goes a tenth of a second later had no answer."""
    going = asyncio.ensure_future(work)
    await asyncio.sleep(0.1)
    going.cancel()
    return (await asyncio.wait([going]))[0] == {going} and going.cancelled()


def test_write_is_not_retried_after_its_deadline(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ccp.server.storage.engine.postgres.random.uniform", lambda *_: 100
    )  # The pause outlasts the time limit.
    tries = 0

    @retryable
    def change() -> Any:
        nonlocal tries
        tries += 1
        yield "select 1", ()
        if tries == 1:
            raise SerializationConflict("Another change was in the way.")
        yield "select pg_sleep(30)", ()

    async def run() -> None:
        async with opened(url) as store:
            outcome, _ = await timed(store.write(change()))
            assert str(outcome) == time_limits.NOT_WRITTEN
            assert tries == 1
            assert await store.write(contracts.publish(variant(), AT))

    asyncio.run(run())


def test_long_reads_leave_connections_to_lookups(url: str) -> None:
    @long_read
    def slow() -> Any:
        yield "select pg_sleep(3)", ()

    async def run() -> None:
        async with opened(url, connections=4, limits=TimeLimits(read=1.5)) as store:
            listing = [asyncio.ensure_future(store.read(slow())) for _ in range(8)]
            await asyncio.sleep(0)
            for _ in range(50):
                await store.read(contracts.by_vehicle(CAR))
                await store.read(lookup())
            assert not any(task.done() for task in listing)
            for task in listing:
                task.cancel()
            await asyncio.wait(listing)
            assert await store.read(contracts.by_vehicle(CAR)) == []

    asyncio.run(run())


def test_long_read_behind_a_pooler_has_its_own_timeout(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccp.server.storage.engine.postgres_hosts.COMMAND_TIMEOUT", 0.5)

    @long_read
    def slow() -> Any:
        rows = yield "select pg_sleep(1.5), 'found'", ()
        return rows[0][1]

    async def run() -> str:
        async with opened(url, limits=TimeLimits(long_read=30)) as store:
            store._pool.found_pooler()
            result: str = await store.read(slow())
            return result

    assert asyncio.run(run()) == "found"


def test_sockets_have_keepalives(url: str) -> None:
    async def run() -> None:
        async with opened(url) as store:
            await store.read(contracts.by_vehicle(CAR))
            (connection, _), *_ = store._pool._idle or ()
            found = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]
            assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 10
            assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 10_000

    asyncio.run(run())


def test_silent_database_that_stopped_is_used_again_when_it_continues(postgres: Server) -> None:
    server = Server()
    try:
        server.start()
        url = server.database()

        async def run() -> None:
            async with opened(url) as store:
                await store.write(contracts.publish(variant(), AT))
                server.pause()
                try:
                    for _ in range(3):
                        outcome, seconds = await timed(store.read(contracts.by_vehicle(CAR)))
                        assert isinstance(outcome, Unavailable)
                        assert seconds < LIMITS.read + SPARE
                finally:
                    server.resume()
                assert await until_served(store) < 1 + SPARE
                assert len(await store.read(contracts.by_vehicle(CAR))) == 1

        asyncio.run(run())
        assert len(sql(url, "select 1 from contract")) == 1
    finally:
        server.resume()
        server.close()
