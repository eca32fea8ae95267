"""HostThrottle: rate, circuit and queues per host and issuer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ccp.server.external.host_limits import HostKey, HostLimited, HostThrottle

HOST = HostKey("http", "ocsp.example", 80, "issuer")


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


async def fail(throttle: HostThrottle, key: HostKey, times: int) -> None:
    for _ in range(times):
        (await throttle.acquire(key)).record_failure()


def test_host_throttle_opens_the_circuit_of_one_host_key_only() -> None:
    async def test() -> None:
        throttle = HostThrottle()
        await fail(throttle, HOST, 3)
        with pytest.raises(HostLimited, match=r"ocsp\.example:80 failed several times") as caught:
            await throttle.acquire(HOST)
        assert caught.value.retry_after == 30
        for other in (
            HOST._replace(issuer="another"), HOST._replace(scheme="https"), HOST._replace(port=8080),
            HOST._replace(host="crl.example"),
        ):  # fmt: skip
            (await throttle.acquire(other)).record_success()

    run(test)


def test_host_throttle_ignores_failures_of_requests_under_way() -> None:
    async def test() -> None:
        throttle = HostThrottle()
        permits = [await throttle.acquire(HOST) for _ in range(10)]
        assert [permit.record_failure() for permit in permits] == [None, None, *[30] * 8]

    run(test)


def test_host_throttle_release_counts_for_nothing() -> None:
    async def test() -> None:
        throttle = HostThrottle()
        await fail(throttle, HOST, 2)
        for _ in range(10):
            (await throttle.acquire(HOST)).release()
        (await throttle.acquire(HOST)).record_success()
        await fail(throttle, HOST, 2)
        await throttle.acquire(HOST)

    run(test)


@pytest.mark.timing
def test_host_throttle_serves_callers_by_round_robin() -> None:
    async def test() -> None:
        throttle, order = HostThrottle(rate=200, burst=1), list[str]()

        async def ask(caller: str) -> None:
            await throttle.acquire(HOST, caller)
            order.append(caller)

        many = [asyncio.create_task(ask("many")) for _ in range(80)]
        await asyncio.sleep(0.02)
        before = len(order)
        await asyncio.gather(ask("a"), ask("b"))
        assert len(order) - before <= 2 + 3, order
        await asyncio.gather(*many)
        assert order.count("many") == 80

    run(test)


def test_host_throttle_removes_cancelled_callers() -> None:
    async def test() -> None:
        throttle = HostThrottle(rate=50, burst=1)
        await throttle.acquire(HOST)
        waiting = [asyncio.create_task(throttle.acquire(HOST, str(n % 3))) for n in range(9)]
        await asyncio.sleep(0)
        for task in waiting[:8]:
            task.cancel()
        await waiting[8]

    run(test)


def test_host_throttle_queue_per_caller_is_bounded() -> None:
    async def test() -> None:
        throttle = HostThrottle(rate=1, burst=1)
        tasks = [asyncio.create_task(throttle.acquire(HOST, "many")) for _ in range(1_100)]
        await asyncio.sleep(0)
        done, waiting = await asyncio.wait(tasks, timeout=0)
        assert len(waiting) <= 1_000
        assert sum(isinstance(task.exception(), HostLimited) for task in done) >= 98
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    run(test)


def test_host_throttle_number_of_hosts_is_bounded() -> None:
    async def test() -> None:
        throttle = HostThrottle(max_hosts=100)
        for number in range(1_000):
            await fail(throttle, HOST._replace(host=f"h{number}.example"), 3)
        assert len(throttle) == 100
        with pytest.raises(HostLimited):
            await throttle.acquire(HOST._replace(host="h999.example"))

    run(test)


def test_host_throttle_removes_idle_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        throttle = HostThrottle()
        for number in range(100):
            await throttle.acquire(HOST._replace(port=number))
        assert len(throttle) == 100
        monkeypatch.setattr("ccp.server.external.host_limits._MAX_IDLE", 0.0)
        for number in range(100, 140):
            await throttle.acquire(HOST._replace(port=number))
        assert len(throttle) <= 4

    run(test)
