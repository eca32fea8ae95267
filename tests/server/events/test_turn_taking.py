"""Whose deliveries begin under overload, with time that a test gives."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from ccp.server.events import turn_taking
from ccp.server.events.turn_taking import TurnTaking


def test_a_webhook_that_always_asks_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_taking, "_DELAY", 0.001)

    async def run() -> Counter[str]:
        free = [False]
        begun: Counter[str] = Counter()

        def has_time() -> bool:
            free[0], was = False, free[0]
            return was

        turns = TurnTaking(has_time)
        wakes = {name: asyncio.Event() for name in ("busy", *(f"quiet-{number}" for number in range(9)))}

        async def line(name: str) -> None:
            while True:
                while not turns.may_begin(name, wakes[name]):
                    if name == "busy":
                        await asyncio.sleep(0)
                    else:
                        await wakes[name].wait()
                        wakes[name].clear()
                begun[name] += 1
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(line(name)) for name in wakes]
        for _ in range(50):
            free[0] = True
            for _ in range(1000):
                await asyncio.sleep(0.001)
                if not free[0]:
                    break
        turns.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return begun

    begun = asyncio.run(run())
    assert begun.total() == 50
    assert set(begun.values()) == {5}


def test_without_overload_each_begins_when_it_asks() -> None:
    async def run() -> None:
        turns = TurnTaking(lambda: True)
        assert all(turns.may_begin(name, asyncio.Event()) for name in ("a", "b", "a"))
        turns.close()

    asyncio.run(run())


def test_those_that_wait_begin_when_the_overload_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_taking, "_DELAY", 0.001)

    async def run() -> None:
        free = [False]
        turns = TurnTaking(lambda: free[0])
        wakes = {name: asyncio.Event() for name in ("a", "b", "gone")}
        assert not any(turns.may_begin(*each) for each in wakes.items())
        turns.forget("gone")
        free[0] = True
        async with asyncio.timeout(5):
            await wakes["a"].wait()
            await wakes["b"].wait()
        assert not wakes["gone"].is_set()
        assert turns.may_begin("b", wakes["b"])
        assert turns.may_begin("a", wakes["a"])
        turns.close()

    asyncio.run(run())
