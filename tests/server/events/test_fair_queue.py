"""FairQueue: order in which webhooks start deliveries under overload."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from ccp.server.events import fair_queue
from ccp.server.events.fair_queue import FairQueue


def test_fair_queue_does_not_starve_quiet_webhooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_queue, "_POLL_INTERVAL", 0.001)

    async def run() -> Counter[str]:
        free = [False]
        begun: Counter[str] = Counter()

        def has_capacity() -> bool:
            free[0], was = False, free[0]
            return was

        queue = FairQueue(has_capacity)
        wakes = {name: asyncio.Event() for name in ("busy", *(f"quiet-{number}" for number in range(9)))}

        async def webhook(name: str) -> None:
            while True:
                while not queue.try_enter(name, wakes[name]):
                    if name == "busy":
                        await asyncio.sleep(0)
                    else:
                        await wakes[name].wait()
                        wakes[name].clear()
                begun[name] += 1
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(webhook(name)) for name in wakes]
        for _ in range(50):
            free[0] = True
            for _ in range(1000):
                await asyncio.sleep(0.001)
                if not free[0]:
                    break
        queue.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return begun

    begun = asyncio.run(run())
    assert begun.total() == 50
    assert set(begun.values()) == {5}


def test_fair_queue_admits_at_once_without_overload() -> None:
    async def run() -> None:
        queue = FairQueue(lambda: True)
        assert all(queue.try_enter(name, asyncio.Event()) for name in ("a", "b", "a"))
        queue.close()

    asyncio.run(run())


def test_fair_queue_admits_waiting_webhooks_after_overload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_queue, "_POLL_INTERVAL", 0.001)

    async def run() -> None:
        free = [False]
        queue = FairQueue(lambda: free[0])
        wakes = {name: asyncio.Event() for name in ("a", "b", "gone")}
        assert not any(queue.try_enter(*each) for each in wakes.items())
        queue.remove("gone")
        free[0] = True
        async with asyncio.timeout(5):
            await wakes["a"].wait()
            await wakes["b"].wait()
        assert not wakes["gone"].is_set()
        assert queue.try_enter("b", wakes["b"])
        assert queue.try_enter("a", wakes["a"])
        queue.close()

    asyncio.run(run())
