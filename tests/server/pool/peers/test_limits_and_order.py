"""Shares, broadcast limits, negative cache, peer ranking and call timing, with simulated clocks."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ccp.ids import PCID, WMI, Namespace, ProviderId
from ccp.server.external.egress import OutboundCall
from ccp.server.pool.broadcast_limits import BroadcastLimits
from ccp.server.pool.negative_cache import NegativeCache
from ccp.server.pool.peer_limits import Shares
from ccp.server.pool.peer_links import CallTiming
from ccp.server.pool.peer_ranking import MAX_WAVES, PeerRanking
from ccp.server.runtime.loop_lag import LoopLag

CAR = PCID("WEX0TEST000000001"), Namespace.ISO2, 1
OTHER = PCID("WEX0TEST000000002"), Namespace.ISO2, 1


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- Shares ----------------------------------------------------------------------------------------------------------


def test_shares_a_waiting_caller_does_not_block_others() -> None:
    async def run() -> list[str]:
        shares, order = Shares(4, 2), list[str]()

        async def use(caller: str, name: str, until: asyncio.Event) -> None:
            await shares.acquire(caller)
            order.append(name)
            await until.wait()
            shares.release(caller)

        first, last = asyncio.Event(), asyncio.Event()
        tasks = [asyncio.create_task(use("a", f"a{number}", first if number < 2 else last)) for number in range(4)]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(use("b", "b0", last)))
        await asyncio.sleep(0)
        assert order == ["a0", "a1", "b0"]
        first.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert order == ["a0", "a1", "b0", "a2", "a3"]
        last.set()
        await asyncio.gather(*tasks)
        assert not shares._in_flight
        assert not shares._waiting
        return order

    assert len(asyncio.run(run())) == 5


def test_shares_a_cancelled_waiter_frees_its_place() -> None:
    async def run() -> None:
        shares = Shares(1, 1)
        await shares.acquire("a")
        waiting = asyncio.create_task(shares.acquire("b"))
        handed_over = asyncio.create_task(shares.acquire("c"))
        await asyncio.sleep(0)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        shares.release("a")
        handed_over.cancel()  # It has the place by now, and has not run yet.
        with suppress(asyncio.CancelledError):
            await handed_over
        assert shares.has_room("d")
        assert not shares._waiting

    asyncio.run(run())


# --- Rates -----------------------------------------------------------------------------------------------------------


def test_broadcast_limits_refuse_a_party_beyond_its_rate() -> None:
    clock = Clock()
    limits = BroadcastLimits(10, clock=clock)
    for _ in range(25):  # What one broadcast causes may go beyond; the next one waits for it.
        assert limits.admits("a") == (_ < 10)
        limits.debit("a")
    clock.now += 1.4
    assert not limits.admits("a")
    clock.now += 0.2
    assert limits.admits("a")


def test_broadcast_limits_leave_room_for_other_parties() -> None:
    clock = Clock()
    limits = BroadcastLimits(10, clock=clock)
    for _ in range(20):
        limits.debit("a")
        limits.debit("b")
    clock.now += 1.01  # In all they are a second ahead, each of them too.
    limits.debit("b")
    assert not limits.admits("b")
    assert limits.admits("c")
    for _ in range(3):
        limits.debit("c")
    assert not limits.admits("c")


def test_broadcast_limits_count_more_while_the_event_loop_is_late() -> None:
    clock, lag = Clock(), [0.15]
    limits = BroadcastLimits(10, lambda: lag[0], clock)
    for _ in range(3):
        assert limits.admits("a")
        limits.debit("a")
    assert not limits.admits("a")


def test_broadcast_limits_bound_the_number_of_parties() -> None:
    limits = BroadcastLimits(0)
    for number in range(10_000):
        limits.debit(str(number))
    assert limits.admits("0")
    assert len(limits._due) <= 4_096
    limits = BroadcastLimits(1, clock=Clock())
    for number in range(10_000):
        limits.debit(str(number))
    assert len(limits._due) <= 4_096


# --- What is remembered ----------------------------------------------------------------------------------------------


def test_negative_cache_key_is_vehicle_edition_and_peer() -> None:
    clock = Clock()
    cache = NegativeCache(30, clock)
    cache.add(CAR, "b")
    clock.now += 20
    cache.add(CAR, "c")
    assert cache.has(CAR, "b")
    assert cache.has(CAR, "c")
    assert not cache.has(CAR, "d")
    assert not cache.has(OTHER, "b")
    assert not cache.has((CAR[0], Namespace.ISO20, 1), "b")
    assert not cache.has((*CAR[:2], 2), "b")
    cache.discard(CAR, "b")
    assert not cache.has(CAR, "b")
    assert cache.has(CAR, "c")
    clock.now += 10  # The entry ends with the first that said no: none counts for longer than its time.
    assert not cache.has(CAR, "c")
    cache.add(CAR, "b")
    assert not cache.has(CAR, "c")


def test_negative_cache_is_bounded_and_evicts_the_oldest() -> None:
    clock = Clock()
    cache = NegativeCache(30, clock, max_vehicles=3)
    cars = [(PCID(f"WEX0TEST{number:09d}"), Namespace.ISO2, 1) for number in range(5)]
    for car in cars:
        clock.now += 1
        cache.add(car, "b")
    assert [cache.has(car, "b") for car in cars] == [False, False, True, True, True]
    clock.now += 60
    cache.add(CAR, "b")
    assert len(cache) == 1
    cache.clear()
    assert not cache.has(CAR, "b")
    cache = NegativeCache(0, clock)
    cache.add(CAR, "b")
    assert not cache.has(CAR, "b")


def test_negative_cache_forgets_one_vehicle_of_one_peer_in_every_edition() -> None:
    cache = NegativeCache(30, Clock(), max_vehicles=3)
    twenty = (CAR[0], Namespace.ISO20, 7)
    for vehicle, peer in ((CAR, "b"), (CAR, "c"), (twenty, "b"), (OTHER, "b")):
        cache.add(vehicle, peer)
    cache.forget(CAR[0], "b")
    cache.forget(PCID("WEX0TEST000099999"), "b")
    assert [cache.has(each, "b") for each in (CAR, twenty, OTHER)] == [False, False, True]
    assert cache.has(CAR, "c")
    for number in range(10):
        cache.add((PCID(f"WEX0TEST{number:09d}"), Namespace.ISO2, 1), "b")
    assert len(cache._of) == len(cache) == 3


# --- Order -----------------------------------------------------------------------------------------------------------


def providers(*names: str) -> frozenset[ProviderId]:
    return frozenset(map(ProviderId, names))


def test_peer_ranking_prefers_provider_then_manufacturer() -> None:
    clock = Clock()
    ranking = PeerRanking(clock)
    registered = {f"p{number}": providers() for number in range(10)} | {"registered": providers("DEEXA")}
    ranking.record("p7", WMI("WEX"), [ProviderId("NLEXB")])
    clock.now += 1
    ranking.record("p3", WMI("WEX"), [ProviderId("DEEXA")])
    ranking.record("gone", WMI("WEX"), [ProviderId("DEEXA")])
    assert ranking.waves(registered, WMI("WEX"), [])[0] == ["p3", "p7"]
    assert ranking.waves(registered, WMI("WXX"), [ProviderId("DEEXA")])[0] == ["registered", "p3"]
    assert ranking.waves(registered, WMI("WEX"), [ProviderId("NLEXB")])[0] == ["p7", "p3"]
    clock.now += 90_000
    assert len(ranking.waves(registered, WMI("WEX"), [])[0]) == 4  # Nothing of late.


def test_peer_ranking_waves_contain_every_peer_once() -> None:
    ranking = PeerRanking(Clock())
    for count in (0, 1, 4, 5, 20, 100):
        registered = {f"p{number}": providers() for number in range(count)}
        waves = ranking.waves(registered, WMI("WEX"), [])
        assert sorted(name for wave in waves for name in wave) == sorted(registered)
        assert len(waves) <= MAX_WAVES
        assert all(len(wave) >= 4 for wave in waves[:-1])
    first = {ranking.waves(registered, WMI("WEX"), [])[0][0] for _ in range(100)}
    assert len(first) > 50  # They take turns.


def test_peer_ranking_memory_is_bounded() -> None:
    ranking = PeerRanking(Clock())
    for number in range(10_000):
        ranking.record(f"p{number}", WMI("WEX"), [ProviderId(f"D{number:04d}")])
    assert len(ranking._seen) <= 4_096
    assert all(len(each) <= 8 for each in ranking._seen.values())


# --- Whose failure it is ---------------------------------------------------------------------------------------------


class Lag(LoopLag):
    total = 0.0

    @property
    def lost(self) -> float:
        return self.total


def test_call_timing_attributes_local_failures_to_this_worker() -> None:
    lag = Lag()
    assert not CallTiming(1.5, lag).failed_here(0.75)

    late = CallTiming(1.5, lag)
    lag.total += 0.2
    assert late.failed_here(0.75)
    assert not CallTiming(1.5, lag).failed_here(0.75)  # What was before does not count.

    resolving = CallTiming(1.5, lag)
    resolving.call.contacted = False
    assert resolving.failed_here(0.75)

    short = CallTiming(0.0, lag)  # It ran out of time at once.
    assert short.failed_here(0.75)
    assert not CallTiming(0.0, lag).failed_here(0.0)
    assert OutboundCall().loop_wait == 0
