"""PostgreSQL engine: isolation, retries, cancellation, and how errors are reported."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from ccp.errors import FieldError, NotFound, Unavailable
from ccp.ids import PCID
from ccp.server.domain.contracts import SignedContract
from ccp.server.storage import Store, connect
from ccp.server.storage.engine import postgres
from ccp.server.storage.engine.query import Query, read_committed, retryable
from ccp.server.storage.engine.time_limits import REQUESTS, TimeLimits
from ccp.server.storage.queries import contracts
from tests.databases import Server, sql
from tests.server.storage.made import (
    AT,
    CAR,
    FIRST,
    NO_LIMITS,
    SECOND_CONTRACT,
    broken_invariants,
    opened,
    read,
    statements,
    variant,
    with_store,
    write,
)
from tests.server.storage.postgres_stores import numbered, sessions, stored
from tests.server.storage.proxy import Cut, between

NOT_WRITTEN = "The database cannot write now; nothing was changed, try again"


@pytest.fixture
def url(postgres: Server) -> str:
    return postgres.emptied()


def end_sessions(url: str) -> None:
    """Let the server close every connection of the pool, as at a restart."""
    for pid in sessions(url):
        sql(url, "select pg_terminate_backend(?, 5000)", pid)


def with_few(url: str, connections: int, use: Callable[[Store], Awaitable[Any]], limits: TimeLimits = REQUESTS) -> Any:
    """Open a store that may make so many connections, use it, close it."""

    async def run() -> Any:
        store = connect(url, connections, limits)
        await store.open()
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(run())


# --- Sessions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("default", "used"), [("off", "on"), ("on", "on"), ("remote_apply", "remote_apply")])
def test_postgres_commit_is_synchronous_at_least_as_configured(postgres: Server, default: str, used: str) -> None:
    url = postgres.database()
    sql(url, f"alter database {url.rsplit('/', 1)[1]} set synchronous_commit = {default}")
    assert write(url, statements(("show synchronous_commit", ()))) == [(used,)]


def test_postgres_compresses_contracts_with_lz4(url: str) -> None:
    known = "select 'lz4' = any (enumvals) from pg_settings where name = 'default_toast_compression'"
    if not sql(url, known)[0][0]:
        pytest.skip("this server was built without lz4")
    write(url, contracts.publish(variant(response=b"the same again and again " * 400), AT))
    assert sql(url, "select pg_column_compression(response) from contract") == [("lz4",)]


def test_postgres_releases_the_locks_of_a_stopped_session(url: str) -> None:
    for setting, value in (("lock_timeout", "4s"), ("idle_in_transaction_session_timeout", "6s"), ("jit", "off")):
        assert write(url, statements((f"show {setting}", ()))) == [(value,)]


# --- Reading ---------------------------------------------------------------------------------------------------------


def test_postgres_read_sees_one_snapshot_unless_marked(url: str) -> None:
    def twice() -> Query[tuple[int, int]]:
        (before,) = (yield "select count(*) from contract", ())[0]
        write_aside()
        (after,) = (yield "select count(*) from contract", ())[0]
        return before, after

    def write_aside() -> None:
        sql(
            url,
            'insert into contract select (jsonb_populate_record(c, \'{"emaid": "DEEXA-ASIDE"}\')).* from contract c',
        )

    write(url, contracts.publish(variant(), AT))
    assert read(url, twice()) == (1, 1)
    sql(url, "delete from contract where emaid = 'DEEXA-ASIDE'")
    assert read(url, read_committed(twice)()) == (1, 2)


def test_postgres_read_in_a_snapshot_cannot_write(url: str) -> None:
    with pytest.raises(Unavailable) as caught:
        read(url, statements(("insert into vehicle (pcid, rev) values ('x', 1)", ())))
    assert isinstance(caught.value.__cause__, asyncpg.ReadOnlySQLTransactionError)
    assert sql(url, "select * from vehicle") == []


def test_postgres_snapshot_costs_two_more_round_trips(url: str) -> None:
    async def run() -> list[int]:
        async with between(url) as proxy, opened(proxy.url) as store:
            costs = []
            for query in (
                lambda: contracts.by_vehicle(CAR),
                lambda: contracts.by_emaid(FIRST),
                lambda: statements(("select 1", ())),
            ):
                await store.read(query())  # Prepares its statements.
                before = proxy.trips
                await store.read(query())
                costs.append(proxy.trips - before)
            return costs

    write(url, contracts.publish(variant(), AT))
    assert asyncio.run(run()) == [1, 2, 3]


def test_postgres_read_sees_the_latest_state_after_a_failed_read(url: str) -> None:
    def failing() -> Query[None]:
        yield "select * from vehicle", ()
        raise NotFound("for the test")

    async def use(store: Store) -> list[SignedContract]:
        with pytest.raises(NotFound):
            await store.read(failing())
        with pytest.raises(Unavailable):
            await store.read(statements(("select nothing from nowhere", ())))
        await store.write(contracts.publish(variant(), AT))
        return await store.read(contracts.by_vehicle(CAR))

    assert len(with_few(url, 1, use)) == 1


def test_postgres_read_that_is_cancelled_leaves_a_working_store(url: str) -> None:
    async def use(store: Store) -> None:
        going = asyncio.ensure_future(store.read(statements(("select pg_sleep(30)", ()))))
        await asyncio.sleep(0.1)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        before = await asyncio.to_thread(sessions, url)
        assert await asyncio.wait_for(store.read(contracts.by_vehicle(CAR)), 5) == []
        assert await asyncio.to_thread(sessions, url) == before, "the same connection, and nothing is left running"

    with_few(url, 1, use)


# --- Changes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [NotFound("for the test"), ValueError("a mistake of ours"), asyncpg.UniqueViolationError("a rule")]
)
def test_postgres_write_that_raises_leaves_nothing(url: str, error: Exception) -> None:
    def failing() -> Query[None]:
        yield from contracts.publish(variant(), AT)
        raise error

    async def use(store: Store) -> None:
        with pytest.raises(type(error)) as caught:
            await store.write(failing())
        assert caught.value is error
        await store.write(contracts.publish(variant(SECOND_CONTRACT), AT))

    with_few(url, 1, use)
    assert stored(url) == {SECOND_CONTRACT}
    assert broken_invariants(url) == []


def test_postgres_write_returns_only_after_the_commit(url: str) -> None:
    async def one(store: Store, number: int) -> None:
        await store.write(contracts.publish(numbered(number), AT, NO_LIMITS))
        assert numbered(number).emaid in await asyncio.to_thread(stored, url)

    async def use(store: Store) -> None:
        await asyncio.gather(*(one(store, number) for number in range(40)))

    with_store(url, use)
    assert broken_invariants(url) == []


def test_postgres_write_that_is_cancelled_is_completed(url: str) -> None:
    async def use(store: Store) -> None:
        def slow() -> Query[None]:
            yield from contracts.publish(variant(FIRST), AT)
            yield "select pg_sleep(0.3)", ()

        going = asyncio.ensure_future(store.write(slow()))
        await asyncio.sleep(0.1)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        await store.write(contracts.publish(variant(SECOND_CONTRACT), AT))

    with_few(url, 1, use)
    assert stored(url) == {FIRST, SECOND_CONTRACT}


def test_postgres_close_waits_for_writes_and_refuses_later_ones(url: str) -> None:
    async def use(store: Store) -> None:
        waiting = [asyncio.ensure_future(store.write(contracts.publish(numbered(n), AT, NO_LIMITS))) for n in range(30)]
        await asyncio.sleep(0.02)
        closing = asyncio.ensure_future(store.close())
        await asyncio.sleep(0)
        with pytest.raises(AssertionError):
            await store.write(contracts.publish(variant(), AT))
        await closing
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, contracts.Published) for outcome in outcomes), outcomes

    with_few(url, 2, use)
    assert len(stored(url)) == 30
    assert sessions(url) == []


def _opposite(first: str, second: str, met: asyncio.Barrier) -> Any:
    """A change that locks two rows, and has the first when the other change has its first."""
    tries = []

    def change() -> Query[int]:
        tries.append(first)
        yield "update vehicle set rev = rev + 1 where pcid = $1", (first,)
        if len(tries) == 1:
            yield "select pg_sleep(0.3)", ()
        yield "update vehicle set rev = rev + 1 where pcid = $1", (second,)
        return len(tries)

    return change


def test_postgres_retries_a_write_after_a_deadlock(url: str) -> None:
    async def use(store: Store) -> list[Any]:
        met = asyncio.Barrier(2)
        changes = [retryable(_opposite("A", "B", met))(), retryable(_opposite("B", "A", met))()]
        return await asyncio.gather(*map(store.write, changes))

    sql(url, "insert into vehicle (pcid, rev) values ('A', 0), ('B', 0)")
    assert sorted(with_store(url, use)) == [1, 2]
    assert sql(url, "select rev from vehicle") == [(2,), (2,)]


def test_postgres_write_without_retry_is_unavailable_after_a_deadlock(url: str) -> None:
    async def use(store: Store) -> list[Any]:
        met = asyncio.Barrier(2)
        changes = [_opposite("A", "B", met)(), _opposite("B", "A", met)()]
        return await asyncio.gather(*map(store.write, changes), return_exceptions=True)

    sql(url, "insert into vehicle (pcid, rev) values ('A', 0), ('B', 0)")
    outcomes = with_store(url, use)
    (refused,) = [outcome for outcome in outcomes if isinstance(outcome, Unavailable)]
    assert isinstance(refused.__cause__, asyncpg.DeadlockDetectedError)
    assert sql(url, "select rev from vehicle") == [(1,), (1,)]


def test_postgres_gives_up_after_repeated_conflicts(url: str) -> None:
    tries = []

    @retryable
    def unlucky() -> Query[None]:
        tries.append(1)
        yield "do $$ begin raise exception using errcode = '40001'; end $$", ()

    with pytest.raises(Unavailable, match=NOT_WRITTEN):
        write(url, unlucky())
    assert len(tries) == 5


# --- Connections -----------------------------------------------------------------------------------------------------


def test_postgres_callers_share_few_connections(url: str) -> None:
    async def use(store: Store) -> list[int]:
        work = [
            store.write(contracts.publish(numbered(n, PCID(f"WEX0MANY{n:09d}")), AT, NO_LIMITS)) for n in range(100)
        ]
        work += [store.read(contracts.by_vehicle(CAR)) for _ in range(100)]
        await asyncio.gather(*work)
        return await asyncio.to_thread(sessions, url)

    assert len(with_few(url, 3, use)) == 3
    assert len(stored(url)) == 100


def test_postgres_wait_for_a_connection_times_out(url: str) -> None:
    async def use(store: Store) -> None:
        slow = asyncio.ensure_future(store.write(statements(("select pg_sleep(1)", ()))))
        await asyncio.sleep(0.05)
        with pytest.raises(Unavailable, match="The database does not answer now"):
            await store.read(contracts.by_vehicle(CAR))
        await slow
        assert await store.read(contracts.by_vehicle(CAR)) == []

    with_few(url, 1, use, TimeLimits(read=0.4))


def test_postgres_locked_row_is_unavailable(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(postgres._SETTINGS, "lock_timeout", "200ms")
    write(url, contracts.publish(variant(), AT))

    async def use(store: Store) -> None:
        other = await asyncpg.connect(url)
        async with other.transaction():
            await other.execute("update vehicle set rev = rev + 1")
            with pytest.raises(Unavailable, match=NOT_WRITTEN) as caught:
                await store.write(contracts.withdraw(FIRST, AT))
            assert isinstance(caught.value.__cause__, asyncpg.LockNotAvailableError)
        await other.close()
        await store.write(contracts.withdraw(FIRST, AT))

    with_few(url, 1, use)
    assert stored(url) == set()


def test_postgres_replaces_dead_idle_connections(url: str) -> None:
    async def use(store: Store) -> None:
        for _ in range(2):
            await asyncio.gather(*(store.read(statements(("select pg_sleep(0.05)", ()))) for _ in range(3)))
            assert len(await asyncio.to_thread(sessions, url)) == 3
            end_sessions(url)  # In the event loop's own thread, which so does not hear of it before it asks again.
            await asyncio.gather(*(store.read(contracts.by_vehicle(CAR)) for _ in range(3)))
            end_sessions(url)
            await store.write(contracts.publish(variant(), AT))

    with_few(url, 3, use)
    assert stored(url) == {FIRST}


def test_postgres_connection_lost_during_a_write_leaves_nothing(url: str) -> None:
    def ended() -> Query[None]:
        yield from contracts.publish(variant(), AT)
        yield "select pg_terminate_backend(pg_backend_pid())", ()

    async def use(store: Store) -> None:
        with pytest.raises(Unavailable, match=NOT_WRITTEN):
            await store.write(ended())
        assert await store.read(contracts.by_vehicle(CAR)) == []
        await store.write(contracts.publish(variant(SECOND_CONTRACT), AT))

    with_few(url, 1, use)
    assert stored(url) == {SECOND_CONTRACT}


@pytest.mark.parametrize(("cut", "left"), [(Cut.BEFORE_COMMIT, set()), (Cut.AFTER_COMMIT, {str(FIRST)})])
def test_postgres_unconfirmed_commit_is_reported_as_unknown(url: str, cut: Cut, left: set[str]) -> None:
    async def run() -> None:
        async with between(url) as proxy, opened(proxy.url) as store:
            proxy.cut = cut
            with pytest.raises(Unavailable, match="did not confirm the change, which may have been made or not"):
                await store.write(contracts.publish(variant(), AT))
            await asyncio.sleep(0.1)
            assert await asyncio.to_thread(stored, url) == left
            # A retry succeeds in either case.
            await store.write(contracts.publish(variant(), AT))

    asyncio.run(run())
    assert stored(url) == {FIRST}
    assert broken_invariants(url) == []


# --- When the database cannot ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "53100",
        "53200",
        "53300",
        "57P01",
        "57P03",
        "57014",
        "58030",
        "25006",
        "55P03",
        "40001",
        "40P01",
        "08006",
        "42P01",
    ],
)
def test_postgres_outage_is_unavailable_and_leaves_nothing(url: str, code: str) -> None:
    """Disk full, out of memory, shutting down, read-only and so on, as the server says them."""

    def failing() -> Query[None]:
        yield from contracts.publish(variant(), AT)
        yield f"do $$ begin raise exception using errcode = '{code}'; end $$", ()

    async def use(store: Store) -> None:
        with pytest.raises(Unavailable, match=NOT_WRITTEN) as caught:
            await store.write(failing())
        assert isinstance(caught.value.__cause__, asyncpg.PostgresError)
        assert caught.value.__cause__.sqlstate == code
        with pytest.raises(Unavailable, match="The database does not answer now"):
            await store.read(failing())
        await store.write(contracts.publish(variant(SECOND_CONTRACT), AT))

    with_few(url, 1, use)
    assert stored(url) == {SECOND_CONTRACT}


@pytest.mark.parametrize("code", ["23505", "42601", "22003", "XX000"])
def test_postgres_defect_is_raised_unchanged(url: str, code: str) -> None:
    failing = statements((f"do $$ begin raise exception using errcode = '{code}'; end $$", ()))
    with pytest.raises(asyncpg.PostgresError) as caught:
        write(url, failing)
    assert caught.value.sqlstate == code


def test_postgres_read_only_database_is_unavailable_then_works_again(postgres: Server) -> None:
    url = postgres.database()
    name = url.rsplit("/", 1)[1]
    write(url, contracts.publish(variant(), AT))

    async def use(store: Store) -> None:
        sql(url, f"alter database {name} set default_transaction_read_only = on")
        end_sessions(url)
        for _ in range(2):
            with pytest.raises(Unavailable, match=NOT_WRITTEN) as caught:
                await store.write(contracts.withdraw(FIRST, AT))
            assert isinstance(caught.value.__cause__, asyncpg.ReadOnlySQLTransactionError)
        assert len(await store.read(contracts.by_vehicle(CAR))) == 1
        sql(postgres.url("postgres"), f"alter database {name} reset default_transaction_read_only")
        end_sessions(url)
        await store.write(contracts.withdraw(FIRST, AT))

    with_few(url, 2, use)
    assert stored(url) == set()


def test_postgres_too_many_connections_is_unavailable_then_works_again(postgres: Server, url: str) -> None:
    sql(url, "grant select on all tables in schema public to careful")
    as_careful = url.replace("//ccp@", f"//careful:{Server.PASSWORD}@")

    async def use(store: Store) -> None:
        sql(url, "alter role careful connection limit 0")
        end_sessions(url)
        try:
            with pytest.raises(Unavailable) as caught:
                await store.read(contracts.by_vehicle(CAR))
            assert isinstance(caught.value.__cause__, asyncpg.TooManyConnectionsError)
        finally:
            sql(url, "alter role careful connection limit -1")
        assert await store.read(contracts.by_vehicle(CAR)) == []

    with_few(as_careful, 2, use)


def test_postgres_text_with_nul_is_a_field_error(url: str) -> None:
    with pytest.raises(FieldError, match=r"a character that cannot be stored \(U\+0000\)"):
        write(url, contracts.publish(variant(metadata="a\0b"), AT))
    assert stored(url) == set()
