"""Concurrent writers of the audit trail in several processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections import Counter
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from ccp.errors import Unavailable
from ccp.ids import EMAID, PCID
from ccp.server.storage import Store
from ccp.server.storage.queries import audit as queries
from ccp.server.storage.queries import contracts
from ccp.server.storage.queries.audit import SHARDS, Action, Entry
from tests.server.audit.made import entry, vehicle_of, verified, verify
from tests.server.storage.made import AT, new_database, opened, sql, variant

SPAWN = multiprocessing.get_context("spawn")


def _publish(pcid: PCID) -> Any:
    return queries.with_audit(
        contracts.publish(variant(EMAID(f"DEEXAW{pcid[-8:]}"), pcid), AT),  # type: ignore[arg-type]
        lambda _: [entry(pcid)],
    )


def _hammer(url: str, seed: int, seconds: float, outcomes: Queue[Counter[str]]) -> None:
    """Few vehicles, so that writers meet in their lanes, and batches as refused access writes them."""
    chance = random.Random(seed)
    counted: Counter[str] = Counter()
    vehicles = [vehicle_of(lane) for lane in range(4)]

    async def caller(store: Store, end: float) -> None:
        while time.monotonic() < end:
            batch = [Entry(AT, str(chance.random()), Action.ACCESS_REFUSED, {}) for _ in range(chance.randrange(1, 30))]
            single = chance.random() < 0.8
            try:
                await store.write(_publish(chance.choice(vehicles)) if single else queries.record(*batch))
                counted["rows"] += 1 if single else len(batch)
            except Unavailable:
                counted["unavailable"] += 1

    async def run() -> None:
        async with opened(url) as store:
            end = time.monotonic() + seconds
            await asyncio.gather(*(caller(store, end) for _ in range(4)))

    asyncio.run(run())
    outcomes.put(counted)


def test_lanes_written_by_several_processes_are_whole(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    outcomes: Queue[Counter[str]] = SPAWN.Queue()
    processes = [SPAWN.Process(target=_hammer, args=(url, seed, 2.0, outcomes)) for seed in range(3)]
    for process in processes:
        process.start()
    together = sum((outcomes.get(timeout=60) for _ in processes), Counter())
    for process in processes:
        process.join(30)
    assert together["rows"] > 200, together
    verdict = verify(url)
    assert (verdict.rows, verdict.broken) == (together["rows"], ())
    assert sql(url, "select count(distinct lane) from audit") == [(SHARDS,)]


def test_verify_accepts_rows_and_erasures_added_meanwhile(tmp_path: Path) -> None:
    """The verifier goes lane by lane; what an erasure blanks in a lane yet to come is listed in one it has passed."""
    url = new_database(tmp_path)

    async def run() -> None:
        async with opened(url) as store, opened(url) as other:
            for lane in range(SHARDS):
                await store.write(queries.record(*(entry(vehicle_of(lane), at=at) for at in range(20))))

            async def disturb() -> None:
                for number in range(40):
                    vehicle = vehicle_of(number % SHARDS)
                    rows = await other.read(queries.rows_naming(vehicle))

                    def change(rows: Any = rows, vehicle: PCID = vehicle) -> Any:
                        yield from queries.erase_subjects(rows)
                        listed = queries.erasure_entries(rows, AT, f"cli:{vehicle}"[:8], {"kind": "pcid"})
                        yield from queries.record(entry(vehicle), *listed)

                    await other.write(change())
                    await asyncio.sleep(0.002)

            task = asyncio.create_task(disturb())
            verdicts = 0
            while not task.done():
                verdict = await verified(store)
                assert verdict.broken == ()
                verdicts += 1
                await asyncio.sleep(0)
            await task
            assert verdicts > 3
            assert (await verified(store)).erased > 300

    asyncio.run(run())
