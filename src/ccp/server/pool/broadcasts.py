"""Broadcasts: a vehicle's request asked of every other pool, the likeliest first, within limits.

    found = await broadcasts.ask(links, Attempt(request, caller, at))

1. Peers that had nothing for this vehicle a short while ago are passed over (`ccp.server.pool.negative_cache`).
2. A broadcast beyond the party's limits is not made at all (`ccp.server.pool.broadcast_limits`).
3. Peers are asked in waves (`ccp.server.pool.peer_ranking`). The next wave starts when those before have said no, or
after a short
   delay. All of it stays within the one time that peers have for a vehicle.
4. The answer with the best `Standing` wins (decision 0014). Once there is one, only peers that could bring a better one
   are asked or waited for.
5. Requests that lose are not cancelled: they end by themselves within their time, and their connections stay open.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import structlog

from ccp.errors import Unavailable
from ccp.server.metrics import Metrics
from ccp.server.pool.broadcast_limits import BroadcastLimits
from ccp.server.pool.negative_cache import NegativeCache, vehicle_of
from ccp.server.pool.peer_answers import Found, Standing, best_of
from ccp.server.pool.peer_calls import DELIVER, Attempt, VehicleCalls
from ccp.server.pool.peer_limits import circuit_open, share_used_up
from ccp.server.pool.peer_links import PeerLink
from ccp.server.pool.peer_ranking import PeerRanking

_log = structlog.get_logger("ccp.server.pool.peers")

_WAVE_DELAY: Final = 0.1  # Of the time that peers have in all; with four waves the last one has 70 % of it.
_GRACE: Final = 0.1  # Seconds. Each call ends by itself; this is for what does not.
NOT_ASKED: Final = "Other pools were not asked, because too many such requests are under way."


class Broadcasts:
    """Those of one worker."""

    def __init__(
        self,
        calls: VehicleCalls,
        limits: BroadcastLimits,
        negatives: NegativeCache,
        ranking: PeerRanking,
        metrics: Metrics,
    ) -> None:
        self._calls = calls
        self._limits = limits
        self._negatives = negatives
        self._ranking = ranking
        self._metrics = metrics
        self._finishing: set[asyncio.Task[Found | None]] = set()

    async def ask(self, links: Sequence[PeerLink], attempt: Attempt) -> Found | None:
        """What other pools hold for the vehicle. links: those that may hold something.

        Raises Unavailable where they are not asked because of a limit.
        """
        request, party = attempt.request, attempt.caller.party.client_id
        vehicle = vehicle_of(request)
        asked = {link.name: link for link in links if not self._negatives.has(vehicle, link.name)}
        if not asked:
            self._metrics.broadcast("remembered" if links else "no_peer")
            return None
        if not self._limits.admits(party):
            self._metrics.broadcast("limited")
            raise Unavailable(NOT_ASKED)
        wanted = list(dict.fromkeys(emaid.provider for emaid in request.request.prioritised))
        registered = {name: link.peer.provider_ids for name, link in asked.items()}
        waves = self._ranking.waves(registered, request.pcid.wmi, wanted)
        race = _Race(self, attempt, [[asked[name] for name in wave] for wave in waves])
        with self._limits.taken(party):
            try:
                await race.run()
            finally:
                await race.end()
        outcome = "found" if race.best is not None else "incomplete" if race.failures else "nothing"
        self._metrics.broadcast(outcome)
        _log.info(
            "broadcast ended",
            outcome=outcome,
            asked=race.asked,
            failed=race.failures,
            remembered=len(links) - len(asked),
            ms=round(race.elapsed * 1000, 2),
            trace_id=attempt.caller.trace_id,
        )
        return race.best

    async def call(self, link: PeerLink, race: _Race) -> Found | None:
        """Ask one peer within a race. Raises Unavailable where it cannot be asked, or does not answer."""
        party = race.attempt.caller.party.client_id
        if link.breaker.is_open:
            raise circuit_open(link.name, link.breaker.retry_after())
        try:
            async with asyncio.timeout(max(0.0, race.seconds_left)):
                await link.cars.acquire(party)
        except TimeoutError:
            self._metrics.peer_asked(link.name, DELIVER, "limited", 0.0)
            raise share_used_up(link.name) from None
        try:
            if race.is_over or not link.breaker.allow():
                raise circuit_open(link.name, link.breaker.retry_after())
            race.sent(asyncio.current_task())
            self._limits.count(party)
            return await self._calls.ask(link, race.attempt, race.seconds_left, lambda: race.is_over)
        finally:
            link.cars.release(party)

    @property
    def seconds(self) -> float:
        """The time that peers have in all for a vehicle."""
        return self._calls.seconds

    def finish(self, tasks: Iterable[asyncio.Task[Found | None]]) -> None:
        """Let calls end by themselves. Their number is bounded by the shares of their peers."""
        for task in tasks:
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)

    async def close(self) -> None:
        tasks = tuple(self._finishing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Race:
    """One broadcast while it lasts."""

    def __init__(self, owner: Broadcasts, attempt: Attempt, waves: Sequence[Sequence[PeerLink]]) -> None:
        self.attempt = attempt
        self.best: Found | None = None
        self.asked = self.failures = 0
        self.is_over = False
        self._owner = owner
        self._waves = deque(waves)
        self._began = time.monotonic()
        self._pending: dict[asyncio.Task[Found | None], Standing] = {}
        self._sent: set[asyncio.Task[Found | None]] = set()
        self._changed = asyncio.Event()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    @property
    def seconds_left(self) -> float:
        return self._owner.seconds - self.elapsed

    async def run(self) -> None:
        """Ask wave after wave, until no peer is left that could bring a better answer, or the time is over."""
        while True:
            if not self._is_worth_waiting() and not self._start_next():
                return
            delay = self._owner.seconds * _WAVE_DELAY if self._waves else self.seconds_left + _GRACE
            try:
                async with asyncio.timeout(min(delay, self.seconds_left + _GRACE)):
                    await self._progress()
            except TimeoutError:
                if self.seconds_left <= 0:
                    return
                self._start_next()

    async def end(self) -> None:
        """Cancel what was not sent and what is overdue; let the rest end by itself."""
        self.is_over = True
        overdue = self.seconds_left <= -_GRACE / 2
        stopped = [task for task in self._pending if overdue or task not in self._sent]
        for task in stopped:
            task.cancel()
        self._owner.finish(task for task in self._pending if task not in stopped)
        await asyncio.gather(*stopped, return_exceptions=True)

    def sent(self, task: asyncio.Task[Found | None] | None) -> None:
        """The call of a task has its place and goes out."""
        assert task is not None
        self._sent.add(task)
        self.asked += 1

    async def _progress(self) -> None:
        """Wait until the answers that have come change what to do."""
        while True:
            self._changed.clear()
            await self._changed.wait()
            if not self._is_worth_waiting():
                return

    def _could_win(self, standing: Standing) -> bool:
        return self.best is None or standing > self.best.standing

    def _is_worth_waiting(self) -> bool:
        return any(self._could_win(standing) for standing in self._pending.values())

    def _start_next(self) -> bool:
        """Start the next wave, without peers that could not bring a better answer. Returns False if there is none.

        Once there is an answer all peers that could bring a better one are asked at once.
        """
        links: list[PeerLink] = []
        while self._waves and (not links or self.best is not None):
            links += [link for link in self._waves.popleft() if self._could_win(best_of(link.peer))]
        for link in links:
            task = asyncio.create_task(self._owner.call(link, self))
            self._pending[task] = best_of(link.peer)
            task.add_done_callback(self._ended)
        return bool(links)

    def _ended(self, task: asyncio.Task[Found | None]) -> None:
        self._pending.pop(task, None)
        self._sent.discard(task)
        found = None
        if task.cancelled() or task.exception() is not None:
            self.failures += 1
        else:
            found = task.result()
        if found is not None and not self.is_over and self._could_win(found.standing):
            self.best = found
            if self._waves:
                self._start_next()
        self._changed.set()
