"""Bounds of the records of refused deliveries, on both engines."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from ccp.errors import NoContract, TooManyRequests
from ccp.errors.codes import ErrorCode
from ccp.server.audit.refused_deliveries import RefusedDeliveries, RefusedRequest
from ccp.server.domain.authorization import Operation
from ccp.server.request_counts import Dialect, RequestCounts
from ccp.server.storage import Store, connect
from ccp.server.storage.queries import refusals, request_counts
from tests.world import AT, new_emaid, new_pcid

_TICKS = itertools.count()


def refused(caller: str, number: int, failure: Any = None) -> RefusedRequest:
    reason = failure or NoContract("No contract is stored for the vehicle.")
    reason.concerned = (str(new_emaid()),)
    trace_id = f"{number:08x}-0000-4000-8000-{abs(hash(caller)) % 16**12:012x}"
    return RefusedRequest(
        trace_id, caller, Operation.DELIVER.value, "opnc", 200, reason.code, None, new_pcid(), None, "gJg=", reason
    )


def recorder(store: Store, dropped: Counter[str], days: int = 30, **options: Any) -> RefusedDeliveries:
    """days: of the retention."""

    async def now() -> datetime:
        return AT

    return RefusedDeliveries(
        store,
        lambda: AT + timedelta(microseconds=next(_TICKS)),
        now,
        retention=timedelta(days=days),
        keep_requests=False,
        dropped=lambda reason: dropped.update([reason]),
        **options,
    )


def test_refused_deliveries_of_a_flood_displace_no_other_callers(url: str) -> None:
    async def run() -> tuple[Counter[str], dict[str, int], int]:
        store, dropped = connect(url), Counter[str]()
        await store.open()
        try:
            deliveries = recorder(store, dropped)
            for number in range(1_000):
                deliveries.record(refused("flood", number))
            deliveries.record(refused("quiet", 1))
            await deliveries.flush()
            counted = dict(await store.read(refusals.callers()))
            await store.write(refusals.trim("flood", 20))
            left = dict(await store.read(refusals.callers()))
            assert left["quiet"] == 1
            found = await store.read(refusals.search(refusals.RefusalFilter(client_id="quiet"), 10))
            assert [len(each.concerned) for each in found] == [1]
            return dropped, counted, left["flood"]
        finally:
            await store.close()

    dropped, counted, left = asyncio.run(run())
    assert dropped == {"caller": 800}
    assert counted == {"flood": 200, "quiet": 1}
    assert left == 20


def test_refused_deliveries_of_one_trace_are_records_of_their_own(url: str) -> None:
    """A caller chooses its trace, and may use one for several requests, or that of another caller."""

    async def run() -> None:
        store = connect(url)
        await store.open()
        try:
            deliveries = recorder(store, Counter())
            given = [refused("cpo", 7), refused("cpo", 8), refused("other", 9)]
            one = [replace(each, trace_id=given[0].trace_id) for each in given]
            for each in one[:2]:
                deliveries.record(each)
            await deliveries.flush()
            deliveries.record(one[2])
            await deliveries.flush()
            found = await store.read(refusals.search(refusals.RefusalFilter(id=one[0].trace_id), 10))
            assert {(each.client_id, each.pcid, each.trace_id) for each in found} == {
                (each.client_id, each.pcid, one[0].trace_id) for each in one
            }
            assert [len(each.concerned) for each in found] == [1, 1, 1], "no record has contracts of another"
            await store.write(refusals.record(found))
            assert len(await store.read(refusals.search(refusals.RefusalFilter(), 100))) == 3, "written once"
        finally:
            await store.close()

    asyncio.run(run())


def test_refused_deliveries_keep_neither_the_error_nor_what_it_says_later(url: str) -> None:
    """Requests that wait for the same connection may get the same error, and its frames hold their bodies."""

    async def run() -> None:
        store = connect(url)
        await store.open()
        try:
            deliveries, shared = recorder(store, Counter()), NoContract("No contract is stored for the vehicle.")
            given, named = [], []
            for number in range(2):
                given.append(refused("cpo", number, shared))
                named.append(shared.concerned)
                deliveries.record(given[-1])
            found = weakref.ref(shared)
            del shared
            given.clear()
            assert found() is None
            await deliveries.flush()
            rows = await store.read(refusals.search(refusals.RefusalFilter(), 10))
            assert [each.concerned for each in reversed(rows)] == named
        finally:
            await store.close()

    asyncio.run(run())


def test_refused_deliveries_are_dropped_under_overload_and_end_with_time(url: str) -> None:
    async def run() -> None:
        store, dropped = connect(url), Counter[str]()
        await store.open()
        try:
            recorder(store, dropped, overloaded=lambda: True).record(refused("cpo", 1))
            assert dropped == {"overload": 1}
            deliveries = recorder(store, dropped)
            deliveries.record(refused("cpo", 2, TooManyRequests("Too many.", retry_after=1)))
            deliveries.record(refused("cpo", 3))
            await deliveries.flush()
            assert await store.read(refusals.callers()) == [("cpo", 1)]
            assert await store.write(refusals.remove_before(AT)) == 0
            assert await store.write(refusals.remove_before(AT + timedelta(seconds=1))) == 1
            assert await store.read(refusals.callers()) == []
        finally:
            await store.close()

    asyncio.run(run())


def test_refused_deliveries_with_a_retention_of_zero_are_not_kept(url: str) -> None:
    async def run() -> None:
        store, dropped = connect(url), Counter[str]()
        await store.open()
        try:
            keeping, without = recorder(store, dropped), recorder(store, dropped, days=0)
            for deliveries in (without, keeping):
                deliveries.record(refused("cpo", 1))
                await deliveries.flush()
                assert await store.read(refusals.callers()) == ([("cpo", 1)] if deliveries is keeping else [])
            await without.purge()
            assert await store.read(refusals.callers()) == []
            assert await store.read(refusals.search(refusals.RefusalFilter(), 10)) == []
        finally:
            await store.close()

    asyncio.run(run())


def test_refused_deliveries_are_purged_by_age_and_to_an_equal_share(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller below its share loses nothing; the others keep their newest records."""
    monkeypatch.setattr(refusals, "MAX_ROWS", 90)

    async def run() -> None:
        store = connect(url)
        await store.open()
        try:
            deliveries = recorder(store, Counter())
            for number in range(150):
                deliveries.record(refused("flood", number))
            for number in range(20):
                deliveries.record(refused("quiet", number))
            deliveries.record(refused("once", 1))
            await deliveries.flush()
            newest = await store.read(refusals.search(refusals.RefusalFilter(client_id="flood"), 30))
            await deliveries.purge()
            assert await store.read(refusals.callers()) == [("flood", 30), ("once", 1), ("quiet", 20)]
            assert await store.read(refusals.search(refusals.RefusalFilter(client_id="flood"), 99)) == newest
            await recorder(store, Counter(), days=-1).purge()
            assert await store.read(refusals.callers()) == []
        finally:
            await store.close()

    asyncio.run(run())


def test_refusals_of_a_page_are_searched_to_a_bound_without_a_gap(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "SEARCHED", 7)

    async def pages(store: Store, wanted: refusals.RefusalFilter) -> list[list[str]]:
        found, cursor = [], refusals.FIRST
        while True:
            page = await store.read(refusals.search_page(wanted, 4, cursor))
            found.append([each.id for each in page.found])
            if page.after is None:
                return found
            cursor = page.after

    async def run() -> None:
        store = connect(url)
        await store.open()
        try:
            deliveries = recorder(store, Counter())
            for number in range(40):
                deliveries.record(refused("cpo" if number % 10 else "rare", number))
            await deliveries.flush()
            everything = [each.id for each in await store.read(refusals.search(refusals.RefusalFilter(), 99))]
            assert len(everything) == 40
            for wanted in (refusals.RefusalFilter(), refusals.RefusalFilter(code="no-contract-for-vehicle")):
                assert list(itertools.chain(*await pages(store, wanted))) == everything
            (emaid,) = (await store.read(refusals.search(refusals.RefusalFilter(), 1)))[0].concerned
            assert await pages(store, refusals.RefusalFilter(emaid=emaid)) == [everything[:1]]
            assert await pages(store, refusals.RefusalFilter(dialect="ocpp")) == [[]] * 7
            rare = await pages(store, refusals.RefusalFilter(client_id="rare"))
            assert [len(each) for each in rare] == [4]
        finally:
            await store.close()

    asyncio.run(run())


def test_request_counts_of_two_workers_add_up(url: str) -> None:
    async def run() -> None:
        stores = [connect(url), connect(url)]
        for store in stores:
            await store.open()
        try:
            for _ in range(3):
                counts = RequestCounts()
                counts.add(Dialect.OPNC, "Deliver", None, 5)
                counts.add(Dialect.OPNC, "Deliver", ErrorCode.NO_VALID_CONTRACT)
                hour = request_counts.hour_of(AT)
                added = {(hour, counted): number for counted, number in counts.take().items()}
                await asyncio.gather(*(store.write(request_counts.add(added)) for store in stores))
            found = await stores[0].read(request_counts.read(AT, AT, timedelta(days=1)))
            assert [(each.code, each.number) for each in found] == [("", 30), ("no-valid-contract", 6)]
            await stores[0].write(request_counts.remove_before(AT + timedelta(hours=1)))
            assert await stores[0].read(request_counts.read(AT, AT)) == []
        finally:
            for store in stores:
                await store.close()

    asyncio.run(run())
