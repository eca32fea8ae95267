"""Processes that write to one database concurrently."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from ccp.errors import NotFound, Unavailable
from ccp.ids import EMAID, Namespace
from ccp.server.storage import Store
from ccp.server.storage.queries import contracts
from tests.server.storage.made import AT, CAR, NO_LIMITS, OTHER_CAR, opened, variant

SPAWN = multiprocessing.get_context("spawn")
EMAIDS = [EMAID(f"DEEXAP0000000{number}") for number in range(6)]


def hammer(url: str, seed: int, duration: float, outcomes: Queue[Counter[str]]) -> None:
    """Change the same two vehicles as fast as possible, from four callers at a time."""
    chance = random.Random(seed)
    counted: Counter[str] = Counter()

    async def caller(store: Store, end: float) -> None:
        while time.monotonic() < end:
            emaid, pcid = chance.choice(EMAIDS), chance.choices([CAR, OTHER_CAR], [4, 1])[0]
            change: Any = chance.choice(
                [
                    contracts.publish(variant(emaid, pcid, namespace=chance.choice(list(Namespace))), AT, NO_LIMITS),
                    contracts.withdraw(emaid, AT),
                    contracts.set_default(emaid, pcid, AT),
                ]
            )
            try:
                await store.write(change)
                counted[change.__name__] += 1
            except (NotFound, Unavailable) as exc:
                counted[type(exc).__name__] += 1
            except Exception as exc:
                counted[repr(exc)] += 1

    async def run() -> None:
        async with opened(url) as store:
            end = time.monotonic() + duration
            await asyncio.gather(*(caller(store, end) for _ in range(4)))

    asyncio.run(run())
    outcomes.put(counted)


def write_forever(url: str, size: int) -> None:
    """Publish without end, and print each EMAID once it is acknowledged. Runs in its own process."""

    async def caller(store: Store, number: int) -> None:
        count = 0
        while True:
            emaid = EMAID(f"DEEXAK{number:02d}{count:06d}")
            try:
                await store.write(contracts.publish(variant(emaid, response=bytes(size)), AT, NO_LIMITS))
            except Unavailable as exc:
                print(f"unavailable {exc.__cause__}", flush=True)
                return
            print(emaid, flush=True)
            count += 1

    async def run() -> None:
        async with opened(url) as store:
            await asyncio.gather(*(caller(store, number) for number in range(8)))

    asyncio.run(run())


def started(url: str, size: int, limit: int | None = None) -> subprocess.Popen[str]:
    """A process that runs `write_forever`. limit: maximum size of the files that it writes, bytes."""

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = f"from {__name__} import write_forever; write_forever({url!r}, {size})"
    return subprocess.Popen(
        [sys.executable, "-c", command],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        preexec_fn=restrict,
    )
