"""Resolver: limits and caches. The lookup function is injected."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from ccp.server.external.resolver import ResolutionError, Resolver


class Names:
    """A name server: those that end in ".silent" hang until the test ends, ".none" do not exist."""

    def __init__(self) -> None:
        self.ends = threading.Event()
        self.asked: list[str] = []
        self.running = self.most_running = 0
        self._lock = threading.Lock()

    def end(self) -> None:
        """Let the silent ones answer, and wait until they have."""
        self.ends.set()
        while self.running:
            time.sleep(0.01)

    def __call__(self, host: str) -> list[str]:
        with self._lock:
            self.asked.append(host)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            if host.endswith(".silent"):
                self.ends.wait(30)
            if host.endswith(".slow"):
                time.sleep(0.05)
            if host.endswith((".none", ".silent")):
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            if host.endswith(".failing"):
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            return ["192.0.2.1", "2001:db8::1%eth0"]
        finally:
            with self._lock:
                self.running -= 1


@pytest.fixture
def names() -> Iterator[Names]:
    names = Names()
    yield names
    names.ends.set()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


def test_resolver_resolves_names_and_literal_addresses(names: Names) -> None:
    async def test() -> None:
        resolver = Resolver(names)
        assert await resolver.resolve("a.example") == (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
        assert await resolver.resolve("10.0.0.1") == (ip_address("10.0.0.1"),)
        assert await resolver.resolve("::1") == (ip_address("::1"),)
        assert names.asked == ["a.example"]

    run(test)


def test_resolver_shares_one_lookup_per_name(names: Names) -> None:
    async def test() -> None:
        resolver = Resolver(names)
        await asyncio.gather(*(resolver.resolve("a.slow", owner=str(number)) for number in range(50)))
        assert names.asked == ["a.slow"]

    run(test)


def test_resolver_caches_failures_with_their_kind(names: Names) -> None:
    async def test() -> None:
        resolver = Resolver(names)
        for host, missing in (("a.none", True), ("a.failing", False), ("a" * 64 + ".invalid", True)):
            for _ in range(3):
                with pytest.raises(ResolutionError) as caught:
                    await (Resolver() if host.startswith("aa") else resolver).resolve(host)
                assert caught.value.missing is missing
        assert names.asked == ["a.none", "a.failing"]

    run(test)


def test_resolver_limits_threads_per_owner(names: Names) -> None:
    """Of many domains, more than there are threads: the owner has its share, and others are resolved at once."""

    async def test() -> None:
        resolver = Resolver(names, timeout=0.3, max_threads=8, max_per_owner=3)
        silent = [asyncio.create_task(resolver.resolve(f"a.d{n}.silent", owner="evil")) for n in range(40)]
        await asyncio.sleep(0)
        began = time.monotonic()
        for n in range(20):
            assert await resolver.resolve(f"h{n}.example", owner="good")
        assert not any(task.done() for task in silent) or time.monotonic() - began > 0.3
        found = await asyncio.gather(*silent, return_exceptions=True)
        assert all(isinstance(each, ResolutionError) for each in found)
        assert sum(host.endswith(".silent") for host in names.asked) == 3

    run(test)


def test_resolver_queues_names_per_owner(names: Names) -> None:
    """And its answer is there for both."""

    async def test() -> None:
        resolver = Resolver(names, timeout=1.0, max_per_owner=3)
        silent = [asyncio.create_task(resolver.resolve(f"a.d{n}.silent", owner="evil")) for n in range(3)]
        waiting = asyncio.create_task(resolver.resolve("h.example", owner="evil"))
        await asyncio.sleep(0)
        assert await resolver.resolve("h.example", owner="good")
        assert await waiting
        assert names.asked.count("h.example") == 1
        for task in silent:
            with pytest.raises(ResolutionError):
                await task
        names.end()

    run(test)


def test_resolver_limits_threads_per_party(names: Names) -> None:
    """A party with a sub-CA of its own makes as many issuers as it likes, each an owner."""

    async def test() -> None:
        resolver = Resolver(names, timeout=0.3, max_threads=8, max_per_party=5)
        silent = [
            asyncio.create_task(resolver.resolve(f"a.d{n}.silent", owner=f"issuer {n}", party="evil"))
            for n in range(40)
        ]
        await asyncio.sleep(0)
        assert await resolver.resolve("h.example", owner="issuer", party="good")
        assert names.most_running <= 6
        for task in silent:
            with pytest.raises(ResolutionError):
                await task
        names.end()

    run(test)


def test_resolver_limits_threads_per_domain(names: Names) -> None:
    """Others still find names below the same domain, where its subdomains are given to anyone."""

    async def test() -> None:
        resolver = Resolver(lambda host: ["192.0.2.1"] if host.startswith("good") else names(host), timeout=0.3)
        asked = [asyncio.create_task(resolver.resolve(f"h{n}.shared.silent", owner="evil")) for n in range(30)]
        await asyncio.sleep(0)
        assert await resolver.resolve("good.shared.silent", owner="good")
        await asyncio.gather(*asked, return_exceptions=True)
        assert sum(host.endswith(".silent") for host in names.asked) == 2

    run(test)


def test_resolver_limits_threads_of_slow_domains(names: Names) -> None:
    """However many owners and domains: names that answer find threads afterwards."""

    async def test() -> None:
        resolver = Resolver(names, timeout=0.3, max_threads=8)
        first = [resolver.resolve(f"a.d{n}.silent", owner=f"party {n}") for n in range(8)]
        await asyncio.gather(*first, return_exceptions=True)
        await asyncio.to_thread(names.end)
        names.ends = threading.Event()
        names.most_running = 0
        again = [resolver.resolve(f"b.d{n}.silent", owner=f"party {n}") for n in range(8)]
        tasks = [asyncio.create_task(each) for each in again]
        await asyncio.sleep(0)
        assert await resolver.resolve("good.example", owner="good")
        await asyncio.gather(*tasks, return_exceptions=True)
        assert names.most_running <= 3

    run(test)


def test_resolver_queue_is_bounded_and_cancelled_callers_leave_it(names: Names) -> None:
    async def test() -> None:
        resolver = Resolver(names, timeout=0.2, max_threads=1, max_queue=5)
        tasks = [asyncio.create_task(resolver.resolve(f"a.d{n}.silent", owner=str(n))) for n in range(9)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        full = [task for task in tasks if task.done()]
        assert len(full) == 3
        assert all("Too many names" in str(task.exception()) for task in full)
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(names.end)
        assert await resolver.resolve("a.example")

    run(test)


def test_resolver_caches_timeouts(names: Names) -> None:
    async def test() -> None:
        resolver = Resolver(names, timeout=0.2)
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(ResolutionError, match=r"not resolved within 0\.2 s"):
                await resolver.resolve("a.silent")
        assert time.monotonic() - began < 0.15
        assert names.asked == ["a.silent"]

    run(test)
