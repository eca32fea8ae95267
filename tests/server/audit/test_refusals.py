"""AccessDenialRecorder under floods: few rows, complete counts, bounded memory."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ccp.errors import Unavailable
from ccp.server.audit.refusals import AccessDenialRecorder
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query, T
from ccp.server.storage.queries import audit as queries
from ccp.server.storage.queries.audit import UNKNOWN, Action, AuditRow, Entry, Filter
from tests.server.audit.made import verify
from tests.server.storage.made import AT, new_database, opened, read, sql


@pytest.fixture
def url(tmp_path: Path) -> str:
    return new_database(tmp_path)


def refusal(
    number: int, address: str = "192.0.2.1", actor: str = UNKNOWN, outcome: str = "not_authenticated 401"
) -> Entry:
    subject = {"operation": "AddSignedContractData", "address": address, "emaid": f"DEEXAF{number:08d}"}
    return Entry(AT, actor, Action.ACCESS_REFUSED, subject, outcome, f"trace-{number}")


def with_refusals(url: str, use: Callable[[AccessDenialRecorder], Awaitable[None]], window: float = 60.0) -> None:
    async def run() -> None:
        async with opened(url) as store:
            refusals = AccessDenialRecorder(store, window)
            refusals.open()
            await use(refusals)
            await refusals.close()

    asyncio.run(run())


async def until(url: str, query: str, expected: list[tuple[Any, ...]]) -> None:
    """Wait for what the background writes; a quarter of a second is usual, the rest is for a busy machine."""
    deadline = time.monotonic() + 30
    while (found := sql(url, query)) != expected:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


def rows(url: str) -> list[AuditRow]:
    return read(url, queries.search(Filter(), 10_000))


def counted(url: str) -> int:
    """How many refusals the rows speak of."""
    return sum(json.loads(row.subject or "").get("count", 1) for row in rows(url))


def test_refusal_is_written_soon_while_the_server_runs(url: str) -> None:
    async def use(refusals: AccessDenialRecorder) -> None:
        refusals.record(refusal(1))
        await until(url, "select trace_id, action from audit", [("trace-1", "access.refused")])

    with_refusals(url, use)


def test_refusal_recorder_writes_queued_rows_on_close(url: str) -> None:
    async def use(refusals: AccessDenialRecorder) -> None:
        for number in range(5):
            refusals.record(refusal(number))

    with_refusals(url, use)
    assert len(rows(url)) == 5
    assert verify(url).broken == ()


def test_refusals_from_one_place_leave_ten_rows_and_one_that_counts_the_rest(url: str) -> None:
    async def use(refusals: AccessDenialRecorder) -> None:
        for number in range(20_000):
            refusals.record(refusal(number))

    with_refusals(url, use)
    assert len(rows(url)) == 11
    assert counted(url) == 20_000
    (count,) = [json.loads(row.subject or "") for row in rows(url) if "count" in (row.subject or "")]
    assert count["count"] == 19_990
    assert (count["address"], count["operation"]) == ("192.0.2.1", "AddSignedContractData")


def test_refusal_recorder_bounds_rows_of_a_distributed_flood_and_counts_all(url: str) -> None:
    async def use(refusals: AccessDenialRecorder) -> None:
        for number in range(50_000):
            refusals.record(refusal(number, f"2001:db8::{number:x}"))
            if number % 1000 == 0:
                await asyncio.sleep(0.01)
        assert refusals.queued + len(refusals._counts) < 1500

    with_refusals(url, use)
    assert 300 < len(rows(url)) <= 300 + 200 + 1
    assert counted(url) == 50_000
    assert sum('"several"' in (row.subject or "") for row in rows(url)) == 1
    assert verify(url).broken == ()


def test_refusals_now_and_then_are_not_hidden_by_a_flood(url: str) -> None:
    async def use(refusals: AccessDenialRecorder) -> None:
        for number in range(2_000):
            refusals.record(refusal(number))
        refusals.record(refusal(7_777, "192.0.2.2", "emsp", "not_authorised 403"))

    with_refusals(url, use)
    (row,) = [row for row in rows(url) if row.actor == "emsp"]
    assert row.trace_id == "trace-7777"


def test_refusal_recorder_writes_counts_at_the_end_of_the_window(url: str) -> None:
    async def use(refusals: AccessDenialRecorder) -> None:
        for number in range(25):
            refusals.record(refusal(number))
        await until(url, "select count(*), max(subject like '%\"count\":15,%') from audit", [(11, 1)])
        for number in range(25):  # Another window has rows of its own.
            refusals.record(refusal(number))

    with_refusals(url, use, window=0.5)
    assert len(rows(url)) == 22
    assert counted(url) == 50


class Ailing:
    """A database that does not answer for a while."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.well = False

    async def write(self, change: Query[T]) -> T:
        if not self.well:
            raise Unavailable("The database does not answer now; try again.")
        return await self._store.write(change)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_refusal_recorder_queues_bounded_rows_while_the_database_does_not_answer(url: str) -> None:
    async def run() -> None:
        async with opened(url) as store:
            ailing = Ailing(store)
            refusals = AccessDenialRecorder(ailing, window=0.01)
            refusals.open()
            for number in range(30_000):
                refusals.record(refusal(number, f"2001:db8::{number % 5000:x}"))
                if number % 100 == 0:
                    await asyncio.sleep(0.001)
            assert sql(url, "select count(*) from audit") == [(0,)]
            assert refusals.queued + len(refusals._counts) <= 2_000
            ailing.well = True
            await refusals.close()

    asyncio.run(run())
    assert counted(url) == 30_000
    assert verify(url).broken == ()


def test_refusal_recorder_takes_microseconds(url: str) -> None:
    """It stands in the path of the request; the bound is some fifty times what it takes here."""

    async def use(refusals: AccessDenialRecorder) -> None:
        entries = [refusal(number) for number in range(10_000)]
        began = time.process_time()
        for entry in entries:
            refusals.record(entry)
        assert (time.process_time() - began) / len(entries) < 100e-6

    with_refusals(url, use)
