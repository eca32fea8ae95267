"""The three writers that buffer rows, on both engines: a database that is away, a row that is refused, a shutdown."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, Protocol

import pytest

from ccp.errors import NoContract, Unavailable
from ccp.errors.codes import ErrorCode
from ccp.server.audit import buffered_writer
from ccp.server.audit.buffered_writer import BufferedWriter
from ccp.server.audit.refusals import AccessDenialRecorder
from ccp.server.audit.refused_deliveries import RefusedDeliveries, RefusedRequest
from ccp.server.audit.request_counts import RequestCountWriter
from ccp.server.domain.authorization import Operation
from ccp.server.request_counts import Dialect, RequestCounts
from ccp.server.runtime.background import BackgroundTasks
from ccp.server.storage import Store, connect
from ccp.server.storage.engine.query import Query, T
from ccp.server.storage.queries.audit import Action, Entry
from tests.captured_logs import captured_logs
from tests.databases import sql
from tests.world import AT

BAD = "bad"


class Ailing:
    """A database that can be away, or hang, or lose the answer to a commit."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away = False
        self.hangs = False
        self.writes = 0

    async def write(self, change: Query[T]) -> T:
        self.writes += 1
        if self.away:
            raise Unavailable("The database does not answer now; try again.")
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        return await self._store.write(change)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Case(Protocol):
    """A writer and its table. bad: a condition in SQL of the rows that the database refuses."""

    table: str
    column: str
    written: str
    capacity: int

    def __init__(self, store: Any) -> None: ...
    def add(self, name: str) -> None: ...
    def open(self, background: BackgroundTasks) -> None: ...
    async def close(self) -> None: ...


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def now() -> datetime:
    return AT


class Access:
    """Refused access."""

    table, column, written, capacity = "audit", "actor", "select count(*) from audit", 300

    def __init__(self, store: Any) -> None:
        self.recorder = AccessDenialRecorder(store)
        self.open, self.close = self.recorder.open, self.recorder.close

    def add(self, name: str) -> None:
        self.recorder.record(Entry(AT, name, Action.ACCESS_REFUSED, {"operation": "x"}, "not_authorised 403"))


class Deliveries:
    """Refused deliveries."""

    table, column, written, capacity = "refusal", "client_id", "select count(*) from refusal", 2_000

    def __init__(self, store: Any) -> None:
        self.number = 0
        self.dropped = Counter[str]()
        self.recorder = RefusedDeliveries(
            store, lambda: AT, now, retention=timedelta(days=1), keep_requests=False, interval=0.05,
            dropped=lambda reason: self.dropped.update([reason]),
        )  # fmt: skip
        self.open, self.close = self.recorder.open, self.recorder.close

    def add(self, name: str) -> None:
        self.number += 1
        trace = f"{self.number:08x}-0000-4000-8000-000000000000"
        failure = NoContract("No contract is stored for the vehicle.")
        self.recorder.record(
            RefusedRequest(
                trace, name, Operation.DELIVER.value, "opnc", 200, failure.code, None, None, None, None, failure
            )
        )


class Counts:
    """Numbers of requests."""

    table, column, capacity = "request_count", "operation", 10_000
    written = "select coalesce(sum(number), 0) from request_count"

    def __init__(self, store: Any) -> None:
        self.counts = RequestCounts()
        self.writer = RequestCountWriter(store, self.counts, lambda: AT, now, interval=0.05)
        self.open, self.close = self.writer.open, self.writer.close

    def add(self, name: str) -> None:
        self.counts.add(Dialect.OPNC, name, ErrorCode.NO_VALID_CONTRACT)


CASES: list[type[Case]] = [Access, Deliveries, Counts]


def refuse(url: str, case: type[Case]) -> None:
    """Let the database refuse rows of the name `BAD`."""
    if url.startswith("sqlite"):
        sql(
            url,
            f"create trigger refuse before insert on {case.table} when new.{case.column} = '{BAD}' "
            "begin select raise(abort, 'refused'); end",
        )
    else:
        sql(url, f"alter table {case.table} add constraint refuse check ({case.column} <> '{BAD}')")


def run(url: str, case: type[Case], use: Callable[[Any, Ailing], Awaitable[None]], *, close: bool = True) -> None:
    async def body() -> None:
        store = connect(url)
        await store.open()
        background = BackgroundTasks()
        ailing = Ailing(store)
        writer = case(ailing)
        writer.open(background)
        try:
            await use(writer, ailing)
            if close:
                await writer.close()
        finally:
            await background.close()
            await store.close()

    asyncio.run(body())


def written(url: str, case: type[Case]) -> int:
    return int(sql(url, case.written)[0][0])


@pytest.mark.parametrize("case", CASES)
def test_buffered_writer_loses_the_refused_row_only(url: str, case: type[Case]) -> None:
    refuse(url, case)

    async def use(writer: Case, ailing: Ailing) -> None:
        for number in range(120):
            writer.add(BAD if number in (0, 30, 119) else f"name-{number}")

    with captured_logs(buffered_writer) as logs:
        run(url, case, use)
    assert written(url, case) == 117
    rejected = [(entry["table"], entry["rows"]) for entry in logs if entry["event"] == "rows rejected"]
    assert rejected[0] == (case.table, 1)
    assert len(rejected) <= 2, "at doubling counts"
    assert sql(url, f"select count(*) from {case.table} where {case.column} = '{BAD}'") == [(0,)]


@pytest.mark.parametrize("case", CASES)
def test_buffered_writer_keeps_every_row_while_the_database_is_away(url: str, case: type[Case]) -> None:
    async def use(writer: Case, ailing: Ailing) -> None:
        ailing.away = True
        for number in range(120):
            writer.add(f"name-{number}")
        await until(lambda: ailing.writes >= 2)
        for number in range(120, 150):
            writer.add(f"name-{number}")
        assert written(url, case) == 0
        ailing.away = False
        await until(lambda: written(url, case) == 150)

    run(url, case, use)
    assert written(url, case) == 150


@pytest.mark.parametrize("case", CASES)
def test_buffered_writer_writes_a_full_buffer_at_the_end(url: str, case: type[Case]) -> None:
    async def use(writer: Case, ailing: Ailing) -> None:
        for number in range(case.capacity):
            writer.add(f"name-{number}")

    run(url, case, use)
    assert written(url, case) == case.capacity


@pytest.mark.parametrize("case", CASES)
def test_buffered_writer_says_at_the_end_what_is_lost(
    url: str, case: type[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccp.server.audit.buffered_writer._CLOSE_TIMEOUT", 0.2)

    async def use(writer: Case, ailing: Ailing) -> None:
        ailing.away = True
        for number in range(100):
            writer.add(f"name-{number}")
        await writer.close()
        ailing.away, ailing.hangs = False, True
        await writer.close()

    with captured_logs(buffered_writer) as logs:
        run(url, case, use, close=False)
    lost = [(entry["table"], entry["rows"]) for entry in logs if entry["event"] == "rows lost at exit"]
    assert lost == [(case.table, 100)] * 2
    assert written(url, case) == 0


def test_buffered_writer_is_bounded_and_merges_rows_of_a_key() -> None:
    stored: list[Any] = []

    async def write(rows: Any) -> None:
        stored.extend(rows)

    async def body() -> None:
        writer = BufferedWriter[int]("t", write, task="t", interval=1, max_rows=3, batch=2, merged=lambda a, b: a + b)
        assert [writer.add(number) for number in range(4)] == [True, True, True, False]
        await writer.flush()
        assert stored == [0, 1, 2]
        assert [writer.merge("key", 10) for _ in range(4)] == [True] * 4
        await writer.flush()
        assert stored == [0, 1, 2, 40]

    asyncio.run(body())


def test_buffered_writer_goes_on_behind_the_rows_that_were_written_alone() -> None:
    """The database goes away in the middle of a batch with a refused row: nothing is written twice, nothing is lost."""
    stored: list[int] = []
    away = True

    async def write(rows: Any) -> None:
        if 1 in rows:
            raise ValueError("refused")
        if away and 3 in rows:
            raise Unavailable("away")
        stored.extend(rows)

    async def body() -> None:
        nonlocal away
        writer = BufferedWriter[int]("t", write, task="t", interval=1, max_rows=10, batch=6)
        for number in range(8):
            writer.add(number)
        with pytest.raises(Unavailable):
            await writer.flush()
        assert (stored, writer.queued) == ([0, 2], 5)
        away = False
        await writer.flush()
        assert (stored, writer.queued) == ([0, 2, 3, 4, 5, 6, 7], 0)

    asyncio.run(body())
