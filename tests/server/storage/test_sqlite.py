"""SQLite engine: durability, atomicity, group commit, cancellation, full disks."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ccp.errors import DatabaseUnavailable, NotFound, Unavailable
from ccp.ids import EMAID, PCID
from ccp.server.domain.contracts import SignedContract
from ccp.server.storage import Store
from ccp.server.storage.engine import schema, sqlite_writer
from ccp.server.storage.engine.query import Query, Row
from ccp.server.storage.queries import contracts
from tests.server.storage.made import (
    AT,
    CAR,
    FIRST,
    NO_LIMITS,
    OTHER_CAR,
    SECOND_CONTRACT,
    THIRD,
    broken_invariants,
    new_database,
    read,
    sql,
    statements,
    variant,
    with_store,
    write,
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return new_database(tmp_path)


def numbered(number: int, pcid: PCID = CAR) -> SignedContract:
    return variant(EMAID(f"DEEXAE{number:08d}"), pcid)


def stored(url: str) -> set[str]:
    return {row[0] for row in sql(url, "select emaid from contract")}


def failing_after(change: Query[Any], error: Exception) -> Query[None]:
    """Make the whole change, then raise."""
    yield from change
    raise error


@contextmanager
def writer_busy(store: Store) -> Iterator[list[asyncio.Future[Any]]]:
    """Hold the writer in a change until the block ends, so that all changes given in the block become one group."""
    started, go_on = threading.Event(), threading.Event()

    def wait() -> Query[None]:
        yield "select 1", ()
        started.set()
        go_on.wait(10)

    waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(store.write(wait()))]
    try:
        yield waiting
    finally:
        go_on.set()


# --- Settings of the connections -------------------------------------------------------------------------------------


def test_sqlite_commit_is_on_disk_before_it_is_acknowledged(url: str) -> None:
    """synchronous = 2 is FULL: the log is synced at every commit. Asked on the connection that writes."""
    for pragma, value in (("synchronous", 2), ("journal_mode", "wal"), ("foreign_keys", 1)):
        assert write(url, statements((f"pragma {pragma}", ()))) == [(value,)]


def test_sqlite_read_cannot_write(url: str) -> None:
    with pytest.raises(Unavailable) as caught:
        read(url, statements(("insert into vehicle (pcid, rev) values ('x', 1)", ())))
    assert "readonly" in str(caught.value.__cause__)
    assert sql(url, "select * from vehicle") == []


# --- Reading ---------------------------------------------------------------------------------------------------------


def test_sqlite_read_sees_one_snapshot(url: str) -> None:
    """Otherwise a contract that moves between the two statements of by_emaid would seem to be nowhere."""
    write(url, contracts.publish(variant(FIRST, CAR), AT))

    def by_emaid_while_it_moves() -> Query[list[SignedContract]]:
        query = contracts.by_emaid(FIRST)
        rows = yield next(query)
        # Another process moves the contract between the two statements.
        sql(url, "update emaid_claim set pcid = ?", OTHER_CAR)
        sql(url, "update contract set pcid = ?", OTHER_CAR)
        try:
            while True:
                rows = yield query.send(rows)
        except StopIteration as stop:
            answer: list[SignedContract] = stop.value
            return answer

    async def use(store: Store) -> list[PCID]:
        during = await store.read(by_emaid_while_it_moves())
        after = await store.read(contracts.by_emaid(FIRST))
        return [contract.pcid for contract in during + after]

    assert with_store(url, use) == [CAR, OTHER_CAR]


def test_sqlite_read_sees_the_latest_state_after_a_failed_read(url: str) -> None:
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

    assert len(with_store(url, use)) == 1


def test_sqlite_readers_do_not_wait_for_a_writer(url: str) -> None:
    write(url, contracts.publish(variant(), AT))

    async def use(store: Store) -> int:
        with writer_busy(store) as waiting:
            await asyncio.sleep(0.02)
            found = await asyncio.wait_for(store.read(contracts.by_vehicle(CAR)), 1)
        await asyncio.gather(*waiting)
        return len(found)

    assert with_store(url, use) == 1


# --- Groups ----------------------------------------------------------------------------------------------------------


def test_sqlite_write_returns_only_after_the_commit(url: str) -> None:
    """After the result is returned, every other connection sees the change."""

    async def one(store: Store, number: int) -> None:
        await store.write(contracts.publish(numbered(number), AT, NO_LIMITS))
        assert numbered(number).emaid in stored(url)

    async def use(store: Store) -> None:
        await asyncio.gather(*(one(store, number) for number in range(40)))

    with_store(url, use)
    assert len(stored(url)) == 40


def test_sqlite_group_commit_acknowledges_after_the_shared_commit(url: str) -> None:
    async def use(store: Store) -> None:
        with writer_busy(store) as waiting:
            waiting += [
                asyncio.ensure_future(store.write(contracts.publish(numbered(n), AT, NO_LIMITS))) for n in range(30)
            ]
            await asyncio.sleep(0.02)
            assert not any(future.done() for future in waiting)
            assert stored(url) == set()
        await waiting[1]
        # The first of them is done, so its whole group is committed.
        assert len(stored(url)) == 30
        await asyncio.gather(*waiting)

    with_store(url, use)


def test_sqlite_group_commit_is_bounded(url: str) -> None:
    async def use(store: Store) -> None:
        with writer_busy(store) as waiting:
            waiting += [
                asyncio.ensure_future(store.write(contracts.publish(numbered(n), AT, NO_LIMITS))) for n in range(150)
            ]
            await asyncio.sleep(0.02)
        await asyncio.gather(*waiting)

    with_store(url, use)
    assert len(stored(url)) == 150
    assert broken_invariants(url) == []


@pytest.mark.parametrize(
    "error",
    [NotFound("for the test"), ValueError("a mistake of ours"), sqlite3.IntegrityError("a rule of the database")],
)
def test_sqlite_write_that_raises_does_not_affect_its_group(url: str, error: Exception) -> None:
    async def use(store: Store) -> list[Any]:
        with writer_busy(store) as waiting:
            waiting += [
                asyncio.ensure_future(store.write(change))
                for change in (
                    contracts.publish(variant(FIRST), AT),
                    failing_after(contracts.publish(variant(SECOND_CONTRACT, OTHER_CAR), AT), error),
                    failing_after(contracts.withdraw(FIRST, AT), error),
                    contracts.publish(variant(THIRD), AT),
                )
            ]
            await asyncio.sleep(0.02)
        return (await asyncio.gather(*waiting, return_exceptions=True))[1:]

    first, second, third, fourth = with_store(url, use)
    assert first.created
    assert fourth.created
    assert second is error
    assert third is error
    assert stored(url) == {FIRST, THIRD}
    assert sql(url, "select pcid, rev, default_emaid from vehicle") == [(CAR, 2, FIRST)]
    assert sql(url, "select emaid from outbox order by rev") == [(FIRST,), (THIRD,)]
    assert broken_invariants(url) == []


def test_sqlite_broken_statement_is_unavailable_with_its_cause(url: str) -> None:
    with pytest.raises(Unavailable, match="The database cannot write now; nothing was changed, try again") as caught:
        write(url, statements(("insert into nowhere values (1)", ())))
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)


def test_sqlite_write_sees_earlier_writes_of_its_group(url: str) -> None:
    async def use(store: Store) -> list[Any]:
        with writer_busy(store) as waiting:
            waiting += [
                asyncio.ensure_future(store.write(change))
                for change in (
                    contracts.publish(variant(FIRST), AT),
                    contracts.publish(variant(FIRST, OTHER_CAR), AT),
                    contracts.withdraw(FIRST, AT),
                    contracts.withdraw(FIRST, AT),
                )
            ]
            await asyncio.sleep(0.02)
        return (await asyncio.gather(*waiting, return_exceptions=True))[1:]

    first, second, third, fourth = with_store(url, use)
    assert (first.moved_from, second.moved_from, third.pcid) == (None, CAR, OTHER_CAR)
    assert isinstance(fourth, NotFound)


# --- Callers that go -------------------------------------------------------------------------------------------------


def test_sqlite_write_cancelled_before_it_begins_leaves_nothing(url: str) -> None:
    async def use(store: Store) -> None:
        with writer_busy(store) as waiting:
            going = asyncio.ensure_future(store.write(contracts.publish(variant(FIRST), AT)))
            waiting.append(asyncio.ensure_future(store.write(contracts.publish(variant(SECOND_CONTRACT), AT))))
            await asyncio.sleep(0.02)
            going.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        with pytest.raises(asyncio.CancelledError):
            await going

    with_store(url, use)
    assert stored(url) == {SECOND_CONTRACT}


def test_sqlite_write_cancelled_while_it_runs_is_completed(url: str) -> None:
    async def use(store: Store) -> None:
        started, go_on = threading.Event(), threading.Event()

        def slow() -> Query[None]:
            yield from contracts.publish(variant(FIRST), AT)
            started.set()
            go_on.wait(10)

        going = asyncio.ensure_future(store.write(slow()))
        await asyncio.to_thread(started.wait, 10)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        go_on.set()
        await store.write(contracts.publish(variant(SECOND_CONTRACT), AT))

    with_store(url, use)
    assert stored(url) == {FIRST, SECOND_CONTRACT}


def test_sqlite_close_waits_for_accepted_writes(url: str) -> None:
    async def use(store: Store) -> list[asyncio.Future[Any]]:
        waiting: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(store.write(contracts.publish(numbered(n), AT, NO_LIMITS))) for n in range(100)
        ]
        await asyncio.sleep(0)
        await store.close()
        await asyncio.gather(*waiting)
        return waiting

    with_store(url, use)
    assert len(stored(url)) == 100


def test_sqlite_write_during_close_is_refused(url: str) -> None:
    async def use(store: Store) -> None:
        closing_store = asyncio.ensure_future(store.close())
        await asyncio.sleep(0)
        with pytest.raises(AssertionError):
            await asyncio.wait_for(store.write(contracts.publish(variant(), AT)), 5)
        await closing_store

    with_store(url, use)


# --- When the database cannot write ----------------------------------------------------------------------------------


def fill(url: str, store_pages: int) -> Query[list[Row]]:
    """Let the file grow by no more than some pages, as far as the connection that writes is concerned."""
    (pages,) = sql(url, "pragma page_count")[0]
    return statements((f"pragma max_page_count = {pages + store_pages}", ()))


def test_sqlite_full_disk_is_unavailable_and_loses_nothing(url: str) -> None:
    async def use(store: Store) -> set[str]:
        await store.write(contracts.publish(variant(FIRST), AT))
        await store.write(fill(url, 40))
        acknowledged = {str(FIRST)}
        causes: list[str] = []
        for number in range(20):
            large = variant(numbered(number).emaid, response=bytes(30_000))
            try:
                await store.write(contracts.publish(large, AT, NO_LIMITS))
            except Unavailable as exc:
                causes.append(str(exc.__cause__))
            else:
                acknowledged.add(str(large.emaid))
        assert 0 < len(causes) < 20
        assert set(causes) == {"database or disk is full"}
        assert stored(url) == acknowledged
        # Reading goes on, and so does writing once there is room again.
        assert len(await store.read(contracts.by_vehicle(CAR))) == len(acknowledged)
        await store.write(statements(("pragma max_page_count = 1000000", ())))
        await store.write(contracts.publish(variant(SECOND_CONTRACT), AT, NO_LIMITS))
        return acknowledged | {str(SECOND_CONTRACT)}

    assert with_store(url, use) == stored(url)
    assert broken_invariants(url) == []
    assert sql(url, "pragma integrity_check") == [("ok",)]


def test_sqlite_full_disk_within_a_group_keeps_exactly_the_acknowledged(url: str) -> None:
    async def use(store: Store) -> set[str]:
        await store.write(fill(url, 30))
        large = [variant(numbered(number).emaid, response=bytes(20_000)) for number in range(12)]
        with writer_busy(store) as waiting:
            waiting += [asyncio.ensure_future(store.write(contracts.publish(each, AT, NO_LIMITS))) for each in large]
            await asyncio.sleep(0.02)
        outcomes = (await asyncio.gather(*waiting, return_exceptions=True))[1:]
        assert {type(outcome) for outcome in outcomes} <= {DatabaseUnavailable, contracts.Published}
        assert any(isinstance(outcome, Unavailable) for outcome in outcomes)
        return {
            str(c.emaid) for c, outcome in zip(large, outcomes, strict=True) if isinstance(outcome, contracts.Published)
        }

    assert with_store(url, use) == stored(url)
    assert broken_invariants(url) == []


def test_sqlite_locked_database_is_unavailable_then_works_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlite_writer.serve
    monkeypatch.setattr(sqlite_writer, "serve", lambda path, busy_timeout, codec: real(path, 0.2, codec))

    async def use(store: Store) -> None:
        with closing(sqlite3.connect(schema.sqlite_file(url), isolation_level=None)) as other:
            other.execute("begin immediate")
            waiting = [store.write(contracts.publish(numbered(number), AT, NO_LIMITS)) for number in range(3)]
            for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(outcome, Unavailable)
                assert "locked" in str(outcome.__cause__)
            other.execute("rollback")
        assert stored(url) == set()
        await store.write(contracts.publish(variant(), AT))

    with_store(url, use)
    assert stored(url) == {FIRST}
