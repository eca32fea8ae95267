"""Several processes on one database, and processes that are killed."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest

from ccp.errors import NotFound
from ccp.ids import EMAID, PCID
from ccp.server.storage import Store
from ccp.server.storage.engine import schema
from ccp.server.storage.queries import contracts, signing_keys
from tests.databases import sql
from tests.server.storage.concurrent_writes import EMAIDS, SPAWN, hammer, started
from tests.server.storage.made import (
    AT,
    CAR,
    OTHER_CAR,
    broken_invariants,
    new_database,
    opened,
    variant,
    with_store,
    write,
)


def check_integrity(url: str) -> None:
    if not schema.is_postgres(url):
        assert sql(url, "pragma integrity_check") == [("ok",)]


def test_processes_that_write_at_once_keep_the_invariants(url: str) -> None:
    outcomes: Queue[Counter[str]] = SPAWN.Queue()
    processes = [SPAWN.Process(target=hammer, args=(url, seed, 2.0, outcomes)) for seed in range(3)]
    for process in processes:
        process.start()
    counted = [outcomes.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
    total = sum(counted, Counter())
    assert set(total) <= {"publish", "withdraw", "set_default", "NotFound", "Unavailable"}, total
    assert all(each["publish"] for each in counted), counted
    assert broken_invariants(url) == []
    if schema.is_postgres(url):
        assert not total["Unavailable"], total  # Locks are taken in one order, so there is no deadlock.
    # Every acknowledged write has its event, a move has two, and no vehicle has a revision twice.
    (events,) = sql(url, "select count(*) from outbox")[0]
    assert events >= total["publish"] + total["withdraw"]
    check_integrity(url)


def _first_contract(url: str, number: int, barrier: Any) -> None:
    async def run() -> None:
        async with opened(url) as store:
            for vehicle in range(25):
                barrier.wait(20)
                emaid = EMAID(f"DEEXAQ{number:04d}{vehicle:04d}")
                await store.write(contracts.publish(variant(emaid, PCID(f"WEX0RACE{vehicle:09d}")), AT))

    asyncio.run(run())


def test_processes_with_first_contracts_at_once_leave_one_default(url: str) -> None:
    barrier = SPAWN.Barrier(3)
    processes = [SPAWN.Process(target=_first_contract, args=(url, number, barrier)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    defaults = sql(url, "select pcid, count(case when is_default then 1 end), count(*) from contract group by pcid")
    assert {row[1:] for row in defaults} == {(1, 3)}
    assert len(defaults) == 25
    assert broken_invariants(url) == []


def _ensure_key(url: str, kid: str, barrier: Any) -> None:
    async def run() -> None:
        async with opened(url) as store:
            barrier.wait(20)
            await store.write(signing_keys.ensure(signing_keys.TokenKey(kid, "private", AT)))

    asyncio.run(run())


def test_processes_at_once_keep_the_first_signing_key(url: str) -> None:
    barrier = SPAWN.Barrier(3)
    processes = [SPAWN.Process(target=_ensure_key, args=(url, f"key {number}", barrier)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sql(url, "select count(*) from token_key") == [(1,)]


def _move_for_ever(url: str, ready: Any, stop: Any) -> None:
    async def run() -> None:
        async with opened(url) as store:
            ready.set()
            count = 0
            while not stop.is_set():
                count += 1
                await store.write(contracts.publish(variant(EMAIDS[0], [CAR, OTHER_CAR][count % 2]), AT))

    asyncio.run(run())


def test_processes_that_move_at_once_keep_a_contract_at_one_vehicle(url: str) -> None:
    write(url, contracts.publish(variant(EMAIDS[0], CAR), AT))
    ready, stop = SPAWN.Event(), SPAWN.Event()
    mover = SPAWN.Process(target=_move_for_ever, args=(url, ready, stop))
    mover.start()

    async def look(store: Store) -> Counter[str]:
        seen: Counter[str] = Counter()
        end = time.monotonic() + 2
        while time.monotonic() < end or len(seen) < 2:
            found = await store.read(contracts.by_emaid(EMAIDS[0]))
            assert len(found) == 1
            seen[found[0].pcid] += 1
        return seen

    try:
        assert ready.wait(20)
        assert set(with_store(url, look)) == {CAR, OTHER_CAR}
    finally:
        stop.set()
        mover.join(20)
    assert mover.exitcode == 0
    assert broken_invariants(url) == []


def _withdraw_or_set_default(url: str, withdrawing: bool, barrier: Any, outcomes: Queue[list[str]]) -> None:
    async def run() -> None:
        events = []
        async with opened(url) as store:
            for vehicle in range(40):
                barrier.wait(20)
                emaid, pcid = EMAID(f"DEEXAR{vehicle:08d}"), PCID(f"WEX0DUEL{vehicle:09d}")
                change: Any = contracts.withdraw(emaid, AT) if withdrawing else contracts.set_default(emaid, pcid, AT)
                try:
                    await store.write(change)
                    events.append("done")
                except NotFound:
                    events.append("not found")
        outcomes.put(events)

    asyncio.run(run())


def test_processes_that_withdraw_and_set_default_at_once_leave_no_stale_default(url: str) -> None:
    for vehicle in range(40):
        pcid = PCID(f"WEX0DUEL{vehicle:09d}")
        other = variant(EMAID(f"DEEXAS{vehicle:08d}"), pcid)
        write(url, contracts.publish(other, AT), contracts.publish(variant(EMAID(f"DEEXAR{vehicle:08d}"), pcid), AT))
    barrier = SPAWN.Barrier(2)
    outcomes: Queue[list[str]] = SPAWN.Queue()
    processes = [
        SPAWN.Process(target=_withdraw_or_set_default, args=(url, withdrawing, barrier, outcomes))
        for withdrawing in (True, False)
    ]
    for process in processes:
        process.start()
    events = [outcomes.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert ["done"] * 40 in events, "every deletion is made"
    assert broken_invariants(url) == []
    # Where the default came first it is gone with the contract; where it came late the other one stays default.
    late = next(each for each in events if each != ["done"] * 40) if events[0] != events[1] else ["done"] * 40
    defaults = sql(url, "select default_emaid from vehicle order by pcid")
    assert [default is None for (default,) in defaults] == [each == "done" for each in late]


# --- Processes that die ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("acknowledged_before", [1, 50, 400])
def test_process_that_is_killed_loses_no_acknowledged_write(url: str, acknowledged_before: int) -> None:
    with started(url, 5_000) as process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline().strip() for _ in range(acknowledged_before)]
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split("\n")
    # The last line may have been cut.
    acknowledged += rest[:-1]
    assert process.returncode == -signal.SIGKILL
    stored = {row[0] for row in sql(url, "select emaid from contract")}
    assert set(acknowledged) <= stored
    assert len(acknowledged) >= acknowledged_before
    check_integrity(url)
    assert broken_invariants(url) == []
    assert schema.revision(url) == schema.head()


def test_process_with_a_file_size_limit_fails_writes_and_loses_nothing(tmp_path: Path) -> None:
    """The limit of the process stands for a full disk: the system refuses to write, whatever SQLite thinks of it."""
    url = new_database(tmp_path)
    with started(url, 20_000, limit=2_000_000) as process:
        assert process.stdout is not None
        lines = process.stdout.read().split("\n")[:-1]
    assert process.returncode == 0
    refused = [line for line in lines if line.startswith("unavailable")]
    assert len(refused) == 8, "every caller was events"
    acknowledged = set(lines) - set(refused)
    assert len(acknowledged) > 20
    assert {row[0] for row in sql(url, "select emaid from contract")} == acknowledged
    assert sql(url, "pragma integrity_check") == [("ok",)]
    assert broken_invariants(url) == []
