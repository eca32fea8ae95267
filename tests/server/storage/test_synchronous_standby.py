"""A PostgreSQL primary whose synchronous standby hangs: errors of callers, and what keeps working."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import CapturingLogger

from ccp.errors import Unavailable
from ccp.ids import EMAID, PCID
from ccp.server.storage import Store
from ccp.server.storage.engine import postgres, synchronous_standby, time_limits
from ccp.server.storage.engine.time_limits import TimeLimits
from ccp.server.storage.queries import contracts
from tests.databases import Server, replicated, sql, wait_for_standby
from tests.server.storage.made import AT, CAR, NO_LIMITS, variant
from tests.server.storage.postgres_stores import SPARE, numbered, opened, sessions, stored, timed

LIMITS = TimeLimits(read=2, write=2)
WAITING = (synchronous_standby.NOT_CONFIRMED, time_limits.NOT_CONFIRMED)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, Server, str]]:
    with replicated() as found:
        yield found


@pytest.fixture
def hanging(pair: tuple[Server, Server, str]) -> Iterator[tuple[Server, Server, str]]:
    """The primary and its standby, which a test may pause, and the URL of an empty database."""
    primary, standby, name = pair
    url = primary.url(name)
    for table in ("contract", "vehicle", "emaid_claim", "outbox"):
        sql(url, f"delete from {table}")
    yield primary, standby, url
    standby.resume()
    wait_for_standby(primary, "sync")


async def until_written(store: Store, emaid: EMAID) -> None:
    deadline = time.monotonic() + 20
    while isinstance((await timed(store.write(contracts.publish(variant(emaid), AT, NO_LIMITS))))[0], Unavailable):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def test_synchronous_standby_that_hangs_is_reported_and_reads_go_on(
    hanging: tuple[Server, Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, standby, url = hanging
    log = CapturingLogger()
    monkeypatch.setattr(synchronous_standby, "_log", log)

    async def run() -> None:
        async with opened(url, 4, LIMITS) as store:
            await store.write(contracts.publish(numbered(0), AT, NO_LIMITS))
            standby.pause()
            changes = [store.write(contracts.publish(numbered(n), AT, NO_LIMITS)) for n in range(1, 9)]
            under_way = asyncio.gather(*map(timed, changes))
            while not under_way.done():
                assert await store.read(contracts.by_vehicle(CAR)), "three of four connections wait, one reads"
                await asyncio.sleep(0.05)
            outcomes = under_way.result()
            assert all(seconds < LIMITS.write + SPARE for _, seconds in outcomes)
            sentences = [str(outcome) for outcome, _ in outcomes]
            assert synchronous_standby.NOT_CONFIRMED in sentences
            assert synchronous_standby.NOT_WRITTEN in sentences
            assert time_limits.NOT_WRITTEN not in sentences
            # From now on no change is begun, which takes no time and no session of the server.
            for number in range(10, 40):
                outcome, _ = await timed(store.write(contracts.publish(numbered(number), AT, NO_LIMITS)))
                assert str(outcome) == synchronous_standby.NOT_WRITTEN
            assert len(await asyncio.to_thread(sessions, url)) <= 4
            assert not store._pool.silent
            standby.resume()
            await until_written(store, numbered(50).emaid)
        events = [call.args[0] for call in log.calls]
        assert events.count("synchronous standby does not answer") == 1
        assert "synchronous standby answers again" in events
        unsure = {numbered(n).emaid for n, sentence in enumerate(sentences, start=1) if sentence in WAITING}
        found = await asyncio.to_thread(stored, url)
        assert {numbered(0).emaid, numbered(50).emaid} <= found <= {numbered(0).emaid, numbered(50).emaid} | unsure

    asyncio.run(run())


def test_write_blocked_by_a_held_commit_explains_the_failure(
    hanging: tuple[Server, Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, standby, url = hanging
    monkeypatch.setitem(postgres._SETTINGS, "lock_timeout", "300ms")

    async def run() -> None:
        async with opened(url, 4, TimeLimits(write=10)) as one, opened(url, 4, TimeLimits(write=10)) as other:
            await one.write(contracts.publish(numbered(0), AT, NO_LIMITS))
            standby.pause()
            commit = asyncio.ensure_future(timed(one.write(contracts.publish(numbered(1), AT, NO_LIMITS))))
            await asyncio.to_thread(waiting_session, url)
            outcome, _ = await timed(other.write(contracts.publish(numbered(2), AT, NO_LIMITS)))
            assert str(outcome) == synchronous_standby.NOT_WRITTEN
            assert not commit.done(), "nothing has found out in the first worker yet"
            standby.resume()
            assert not isinstance((await commit)[0], Exception)

    asyncio.run(run())


def test_synchronous_standby_holds_commits_and_no_other_write(hanging: tuple[Server, Server, str]) -> None:
    _, standby, url = hanging

    def change(number: int) -> Any:
        """Of a vehicle of its own, so that none waits for another one's lock."""
        return contracts.publish(numbered(number, PCID(f"WEX0STANDBY{number:06d}")), AT, NO_LIMITS)

    async def run() -> None:
        async with opened(url, 4, LIMITS) as store:
            await store.write(change(0))
            standby.pause()
            outcomes = await asyncio.gather(*(timed(store.write(change(number))) for number in range(1, 7)))
            sentences = [str(outcome) for outcome, _ in outcomes]
            assert sentences.count(synchronous_standby.NOT_CONFIRMED) == 3, sentences
            assert sentences.count(synchronous_standby.NOT_WRITTEN) == 3, sentences
            for number in range(10, 40):
                outcome, seconds = await timed(store.write(change(number)))
                assert str(outcome) == synchronous_standby.NOT_WRITTEN
                assert seconds < LIMITS.write
            standby.resume()
            await until_written(store, numbered(50).emaid)

    asyncio.run(run())


def waiting_session(url: str) -> int:
    """The process id of a session whose commit waits for the standby, as soon as there is one."""
    deadline = time.monotonic() + 10
    while not (pids := sql(url, "select pid from pg_stat_activity where wait_event = 'SyncRep'")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(pids[0][0])


def test_synchronous_standby_that_is_removed_lets_writes_go_on(hanging: tuple[Server, Server, str]) -> None:
    primary, standby, url = hanging

    def configure(names: str) -> None:
        sql(primary.url("postgres"), f"alter system set synchronous_standby_names = '{names}'")
        sql(primary.url("postgres"), "select pg_reload_conf()")

    async def run() -> None:
        async with opened(url, 4, LIMITS) as store:
            standby.pause()
            outcome, _ = await timed(store.write(contracts.publish(numbered(1), AT, NO_LIMITS)))
            assert str(outcome) == synchronous_standby.NOT_CONFIRMED
            await asyncio.to_thread(configure, "")
            await until_written(store, numbered(2).emaid)

    try:
        asyncio.run(run())
        assert stored(url) == {numbered(1).emaid, numbered(2).emaid}
    finally:
        standby.resume()
        configure("standby")


def test_commit_with_a_cancelled_wait_is_not_confirmed(hanging: tuple[Server, Server, str]) -> None:
    _, standby, url = hanging

    def cancel() -> None:
        sql(url, "select pg_cancel_backend(?)", waiting_session(url))

    async def run() -> None:
        async with opened(url, 4, TimeLimits(write=20)) as store:
            await store.read(contracts.by_vehicle(CAR))
            standby.pause()
            change = asyncio.ensure_future(timed(store.write(contracts.publish(numbered(1), AT, NO_LIMITS))))
            await asyncio.to_thread(cancel)
            outcome, _ = await change
            assert str(outcome) == time_limits.NOT_CONFIRMED

    asyncio.run(run())


def test_synchronous_standby_does_not_hold_up_closing(hanging: tuple[Server, Server, str]) -> None:
    _, standby, url = hanging

    async def run() -> None:
        async with opened(url, 4, LIMITS) as store:
            standby.pause()
            outcome, _ = await timed(store.write(contracts.publish(numbered(1), AT, NO_LIMITS)))
            assert str(outcome) == synchronous_standby.NOT_CONFIRMED
            begun = asyncio.ensure_future(timed(store.write(contracts.publish(numbered(2), AT, NO_LIMITS))))
            await asyncio.sleep(0)
            began = time.monotonic()
        assert time.monotonic() - began < LIMITS.write + SPARE
        assert isinstance((await begun)[0], Unavailable)

    asyncio.run(run())
