"""Threads of the SQLite engine that die or hang: every caller gets an answer, and the threads are restarted."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ccp.errors import DatabaseUnavailable, Unavailable
from ccp.ids import EMAID
from ccp.server.domain.contracts import SignedContract
from ccp.server.runtime import threads
from ccp.server.storage import Store, connect
from ccp.server.storage.engine import sqlite_writer
from ccp.server.storage.engine.query import Query, long_read, long_write
from ccp.server.storage.engine.secret_codec import SecretCodec
from ccp.server.storage.engine.time_limits import NOT_CONFIRMED, NOT_READ, NOT_WRITTEN, REQUESTS, TimeLimits
from ccp.server.storage.engine.write_lock import WriteLock
from ccp.server.storage.queries import contracts
from tests.server.storage.made import AT, CAR, FIRST, NO_LIMITS, new_database, sql, variant, with_store


@pytest.fixture
def url(tmp_path: Path) -> str:
    return new_database(tmp_path)


def numbered(number: int) -> SignedContract:
    return variant(EMAID(f"DEEXAT{number:08d}"))


def publish(store: Store, number: int) -> asyncio.Future[Any]:
    return asyncio.ensure_future(store.write(contracts.publish(numbered(number), AT, NO_LIMITS)))


def stored(url: str) -> set[str]:
    return {row[0] for row in sql(url, "select emaid from contract")}


def with_limits(url: str, use: Callable[[Store], Awaitable[None]], limits: TimeLimits) -> None:
    async def run() -> None:
        store = connect(url, limits=limits)
        await store.open()
        try:
            await use(store)
        finally:
            await store.close()

    asyncio.run(run())


async def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def outcomes(store: Store, numbers: range) -> list[Any]:
    async with asyncio.timeout(30):
        return list(await asyncio.gather(*(publish(store, n) for n in numbers), return_exceptions=True))


class Ends(BaseException):
    """What no handler of ordinary errors takes."""


@contextmanager
def failing_lock(error: BaseException) -> Iterator[list[int]]:
    """The lock between the processes that write raises. What is given counts how often."""
    count: list[int] = []

    @contextmanager
    def mine(self: WriteLock) -> Iterator[None]:
        count.append(1)
        raise error
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WriteLock, "hold", mine)
        yield count


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError(), ValueError("a defect"), Ends()])
def test_sqlite_writer_that_dies_answers_its_callers_and_is_restarted(url: str, error: BaseException) -> None:
    async def use(store: Store) -> None:
        await publish(store, 0)
        with failing_lock(error) as count:
            found = await outcomes(store, range(1, 101))
            assert [type(each) for each in found] == [DatabaseUnavailable] * 100
            assert {str(each) for each in found} == {NOT_WRITTEN}
            assert any(each.__cause__ is error for each in found)
            assert store.reasons() == ["The database writer does not run; it is being started again."]
            refused = publish(store, 101)
            await asyncio.sleep(0)
            assert refused.done(), "later ones are not kept waiting"
            assert isinstance(refused.exception(), Unavailable)
            await until(lambda: len(count) > 3)
            assert store.reasons(), "it says that it runs only when it could lock the database"
        await until(lambda: not store.reasons())
        assert stored(url) == {numbered(0).emaid}
        assert {type(each) for each in await outcomes(store, range(102, 120))} == {contracts.Published}

    with_store(url, use)
    assert len(stored(url)) == 19


def test_sqlite_writer_that_dies_acknowledges_exactly_what_was_committed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies after some groups, in every phase of a group: none is acknowledged without being stored."""
    real = sqlite_writer.run
    count = 0

    def dying(connection: sqlite3.Connection, steps: Query[Any], codec: SecretCodec) -> Any:
        nonlocal count
        count += 1
        if count % 37 == 0:
            raise MemoryError
        return real(connection, steps, codec)

    async def use(store: Store) -> None:
        acknowledged: set[str] = set()
        monkeypatch.setattr(sqlite_writer, "run", dying)
        monkeypatch.setattr(threads, "_MAX_DELAY", 0.05)
        for start in range(0, 200, 10):
            found = await outcomes(store, range(start, start + 10))
            for number, each in zip(range(start, start + 10), found, strict=True):
                assert isinstance(each, Unavailable | contracts.Published)
                if isinstance(each, contracts.Published):
                    acknowledged.add(numbered(number).emaid)
                else:
                    assert str(each) == NOT_WRITTEN
            assert stored(url) == acknowledged
            await until(lambda: not store.reasons())
        assert 0 < len(acknowledged) < 200

    with_store(url, use)


def test_sqlite_file_that_is_damaged_is_unavailable_to_writers_and_readers(url: str) -> None:
    """SQLite says DatabaseError here, which no statement of ours causes."""

    def damage() -> None:
        file = Path(url.removeprefix("sqlite:///"))
        with file.open("r+b") as damaged:  # Everything but the first page, which the connections have read.
            damaged.seek(4096)
            damaged.write(bytes(file.stat().st_size - 4096))

    async def use(store: Store) -> None:
        damage()
        with pytest.raises(Unavailable, match=NOT_WRITTEN):
            await publish(store, 0)
        with pytest.raises(Unavailable, match=NOT_READ):
            await store.read(contracts.by_vehicle(CAR))

    with_store(url, use)


# --- A thread that hangs ---------------------------------------------------------------------------------------------


def test_sqlite_writer_that_hangs_fails_its_callers_in_time(url: str) -> None:
    async def use(store: Store) -> None:
        started, go_on = threading.Event(), threading.Event()

        def hanging() -> Query[None]:
            yield from contracts.publish(numbered(0), AT, NO_LIMITS)
            started.set()
            go_on.wait(30)

        first = asyncio.ensure_future(store.write(hanging()))
        await asyncio.to_thread(started.wait, 30)
        waiting = await outcomes(store, range(1, 6))
        assert [str(each) for each in waiting] == [NOT_WRITTEN] * 5
        with pytest.raises(Unavailable) as caught:
            await first
        assert str(caught.value) == NOT_CONFIRMED
        await until(store.reasons)
        assert store.reasons() == ["The database writer has hung for more than 1.3 seconds."]
        refused = publish(store, 6)
        await asyncio.sleep(0)
        assert refused.done(), "later ones are not kept waiting"
        assert isinstance(refused.exception(), Unavailable)
        go_on.set()
        await until(lambda: not store.reasons())
        await publish(store, 7)

    with_limits(url, use, replace(REQUESTS, write=0.3))
    # A write that had begun was completed, as its caller was warned; a write given up was not.
    assert stored(url) == {numbered(0).emaid, numbered(7).emaid}


def test_long_read_is_interrupted_and_delays_no_lookup(url: str) -> None:
    @long_read
    def endless() -> Query[None]:
        yield "with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n", ()

    @long_read
    def short() -> Query[int]:
        rows = yield "select count(*) from vehicle", ()
        count: int = rows[0][0]
        return count

    async def use(store: Store) -> None:
        await publish(store, 0)
        asking = asyncio.ensure_future(store.read(endless()))
        await asyncio.sleep(0.05)
        assert len(await store.read(contracts.by_vehicle(CAR))) == 1
        assert not asking.done()
        with pytest.raises(Unavailable, match=NOT_READ):
            await asking
        await until(lambda: not store.reasons())
        assert await store.read(short()) == 1

    with_limits(url, use, replace(REQUESTS, long_read=2.0))


def test_long_read_cannot_write(url: str) -> None:
    @long_read
    def changing() -> Query[None]:
        yield "insert into vehicle (pcid, rev) values ('x', 1)", ()

    async def use(store: Store) -> None:
        with pytest.raises(Unavailable) as caught:
            await store.read(changing())
        assert "readonly" in str(caught.value.__cause__)

    with_store(url, use)


# --- A file that is busy ---------------------------------------------------------------------------------------------

# As a process that was stopped in the middle of rebuilding the index of the log leaves it: the locks WAL_WRITE_LOCK,
# WAL_CKPT_LOCK and WAL_RECOVER_LOCK are held, and the index says nothing. Source: https://www.sqlite.org/walformat.html
_RECOVERING = """
import fcntl, sys
with open(sys.argv[1] + "-shm", "r+b") as index:
    fcntl.lockf(index, fcntl.LOCK_EX, 3, 120)
    index.write(bytes(96))
    index.flush()
    print("locked", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def busy(url: str) -> Iterator[Callable[[], None]]:
    """Another process holds the locks of a recovery. What is given ends it."""
    command = [sys.executable, "-c", _RECOVERING, url.removeprefix("sqlite:///")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"locked\n"
        yield process.stdin.close
    finally:
        process.kill()
        process.wait(30)
        process.stdin.close()
        process.stdout.close()


def test_sqlite_reader_waits_for_a_busy_file_without_blocking_the_loop(url: str) -> None:
    async def use(store: Store) -> None:
        await publish(store, 0)
        with busy(url) as end:
            waiting = asyncio.ensure_future(store.read(contracts.by_vehicle(CAR)))
            for _ in range(5):
                await asyncio.sleep(0)  # The loop goes on meanwhile.
            assert not waiting.done()
            end()
            assert len(await waiting) == 1

    with_limits(url, use, replace(REQUESTS, read=30.0))


def test_sqlite_reader_gives_up_on_a_busy_file(url: str) -> None:
    async def use(store: Store) -> None:
        await publish(store, 0)
        with busy(url), pytest.raises(Unavailable, match=NOT_READ):
            await store.read(contracts.by_vehicle(CAR))
        assert len(await store.read(contracts.by_vehicle(CAR))) == 1

    with_limits(url, use, replace(REQUESTS, read=0.3))


def test_long_write_is_not_taken_for_a_hanging_one(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_MARGIN", 0.1)
    go_on = threading.Event()

    @long_write
    def large() -> Query[None]:
        yield "select 1", ()
        go_on.wait(30)

    async def use(store: Store) -> None:
        waiting = asyncio.ensure_future(store.write(large()))
        for number in range(3):
            with pytest.raises(Unavailable, match=NOT_WRITTEN):
                await publish(store, number)
        await asyncio.sleep(0.3)  # Longer than another write and the margin.
        assert store.reasons() == []
        go_on.set()
        await waiting

    with_limits(url, use, replace(REQUESTS, write=0.1))


def test_store_closes_while_its_writer_restarts(url: str) -> None:
    async def use(store: Store) -> None:
        with failing_lock(OSError("for the test")), contextlib.suppress(Unavailable):
            await publish(store, 0)

    began = time.monotonic()
    with_store(url, use)
    assert time.monotonic() - began < 5
    assert FIRST not in stored(url)
