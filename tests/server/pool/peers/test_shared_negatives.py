"""Negative answers that workers forget because a peer announces that its contracts have changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final, cast

import pytest

from ccp.errors import Unavailable
from ccp.ids import PCID, Namespace
from ccp.server.pool.negative_cache import NegativeCache, Vehicle
from ccp.server.pool.shared_negatives import MAX_VEHICLES, SharedNegatives
from ccp.server.storage import Store, connect
from ccp.server.storage.engine.schema import upgrade

CARS: Final[list[Vehicle]] = [
    (PCID(f"WEX0TEST{number:09d}"), Namespace.ISO2, 1) for number in range(3 * MAX_VEHICLES)
]  # fmt: skip


def empty_cache() -> NegativeCache:
    return NegativeCache(30, lambda: 0.0)


@pytest.mark.parametrize(
    ("announced", "left"), [(1, len(CARS) - 1), (MAX_VEHICLES, len(CARS) - MAX_VEHICLES), (MAX_VEHICLES + 1, 0)]
)
def test_shared_negatives_of_one_peer_are_forgotten_by_other_workers(tmp_path: Path, announced: int, left: int) -> None:
    """However many vehicles a peer announces, what another peer answered stays."""
    url = f"sqlite:///{tmp_path}/pool.db"
    upgrade(url)

    async def run() -> dict[str, int]:
        store, cache = connect(url), empty_cache()
        await store.open()
        try:
            here, there = SharedNegatives(store, empty_cache()), SharedNegatives(store, cache)
            await there.refresh()
            for car in CARS:
                cache.add(car, "b")
                cache.add(car, "c")
            for pcid, *_ in CARS[:announced]:
                here.forget("b", pcid)
            await here.write_task().run()
            await there.refresh()
        finally:
            await store.close()
        return {peer: sum(cache.has(car, peer) for car in CARS) for peer in ("b", "c")}

    assert asyncio.run(run()) == {"b": left, "c": len(CARS)}


class FailingStore:
    """A database that does not answer. meanwhile: called while a write waits for it."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile = meanwhile

    async def write(self, query: object) -> None:
        self._meanwhile()
        raise Unavailable("The database does not answer.")


def test_shared_negatives_stay_bounded_while_the_database_fails() -> None:
    cars = iter(CARS)

    def announce() -> None:
        for pcid, *_ in islice(cars, MAX_VEHICLES // 2):
            shared.forget("b", pcid)

    async def fail() -> None:
        for _ in range(4):
            with pytest.raises(Unavailable):
                await shared.write_task().run()
            assert len(shared._waiting.get("b") or ()) <= MAX_VEHICLES

    shared = SharedNegatives(cast(Store, FailingStore(announce)), empty_cache())
    announce()
    asyncio.run(fail())
    assert shared._waiting == {"b": None}
