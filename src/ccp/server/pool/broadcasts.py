"""Broadcasts: send a vehicle's request to every other pool, the likeliest first, within limits.

    found = await broadcasts.ask(links, VehicleRequest(request, caller, now))

1. Peers that recently had nothing for this vehicle are skipped (`ccp.server.pool.negative_cache`).
2. A broadcast beyond the party's limits is not sent at all (`ccp.server.pool.broadcast_limits`).
3. Peers are asked in waves (`ccp.server.pool.peer_ranking`). The next wave starts when those before have answered that
   they have nothing, or after a short delay. All waves share the one time limit that peers have for a vehicle.
4. The answer with the best `AnswerRank` wins (decision 0014). Once there is one, only peers that could return a better
   one are asked or waited for.
5. Requests that lose are not cancelled: they end within their own time limit, and their connections stay open.
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
from ccp.server.pool.peer_answers import AnswerRank, PeerAnswer, best_rank_of
from ccp.server.pool.peer_calls import DELIVER, VehicleCalls, VehicleRequest
from ccp.server.pool.peer_limits import circuit_open, share_used_up
from ccp.server.pool.peer_links import PeerLink
from ccp.server.pool.peer_ranking import PeerRanking

_log = structlog.get_logger("ccp.server.pool.peers")

_WAVE_DELAY: Final = 0.1  # Share of the time limit; with four waves the last one has 70 % of it.
_GRACE: Final = 0.1  # Seconds after the time limit in which calls end by themselves; then they are cancelled.
NOT_ASKED: Final = "Other pools were not asked, because too many such requests are under way."


class Broadcasts:
    """The broadcasts of one worker."""

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
        self._finishing: set[asyncio.Task[PeerAnswer | None]] = set()

    async def ask(self, links: Sequence[PeerLink], vehicle_request: VehicleRequest) -> PeerAnswer | None:
        """The best answer of other pools; None if they have nothing. links: peers that may have something.

        Raises Unavailable if a limit forbids the broadcast.
        """
        request, party = vehicle_request.request, vehicle_request.caller.party.client_id
        vehicle = vehicle_of(request)
        asked = {link.name: link for link in links if not self._negatives.has(vehicle, link.name)}
        if not asked:
            self._metrics.broadcast("remembered" if links else "no_peer")
            return None
        if not self._limits.admits(party):
            self._metrics.broadcast("limited")
            raise Unavailable(NOT_ASKED)
        wanted = list(dict.fromkeys(emaid.provider for emaid in request.request.prioritized_emaids))
        registered = {name: link.peer.provider_ids for name, link in asked.items()}
        waves = self._ranking.waves(registered, request.pcid.wmi, wanted)
        race = _Race(self, vehicle_request, [[asked[name] for name in wave] for wave in waves])
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
            trace_id=vehicle_request.caller.trace_id,
        )
        return race.best

    async def call(self, link: PeerLink, race: _Race) -> PeerAnswer | None:
        """Ask one peer within a race. Raises Unavailable if it cannot be asked or does not answer."""
        party = race.vehicle_request.caller.party.client_id
        if link.breaker.is_open:
            raise circuit_open(link.name, link.breaker.retry_after())
        try:
            async with asyncio.timeout(max(0.0, race.time_left)):
                await link.vehicle_shares.acquire(party)
        except TimeoutError:
            self._metrics.peer_request_ended(link.name, DELIVER, "limited", 0.0)
            raise share_used_up(link.name) from None
        try:
            if race.is_over or not link.breaker.allow():
                raise circuit_open(link.name, link.breaker.retry_after())
            race.started(asyncio.current_task())
            self._limits.debit(party)
            return await self._calls.ask(link, race.vehicle_request, race.time_left, lambda: race.is_over)
        finally:
            link.vehicle_shares.release(party)

    @property
    def timeout(self) -> float:
        """Seconds that all peers together have for a vehicle."""
        return self._calls.timeout

    def finish(self, tasks: Iterable[asyncio.Task[PeerAnswer | None]]) -> None:
        """Keep calls running to their end. The shares of their peers bound their number."""
        for task in tasks:
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)

    async def close(self) -> None:
        """Cancel calls that are still running."""
        tasks = tuple(self._finishing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Race:
    """One broadcast in progress: the calls to its peers, and the best answer so far."""

    def __init__(self, owner: Broadcasts, vehicle_request: VehicleRequest, waves: Sequence[Sequence[PeerLink]]) -> None:
        self.vehicle_request = vehicle_request
        self.best: PeerAnswer | None = None
        self.asked = self.failures = 0
        self.is_over = False
        self._owner = owner
        self._waves = deque(waves)
        self._began = time.monotonic()
        self._pending: dict[asyncio.Task[PeerAnswer | None], AnswerRank] = {}
        self._sent: set[asyncio.Task[PeerAnswer | None]] = set()
        self._changed = asyncio.Event()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    @property
    def time_left(self) -> float:
        return self._owner.timeout - self.elapsed

    async def run(self) -> None:
        """Ask wave after wave until no peer is left that could return a better answer, or the time limit is reached."""
        while True:
            if not self._is_worth_waiting() and not self._start_next():
                return
            delay = self._owner.timeout * _WAVE_DELAY if self._waves else self.time_left + _GRACE
            try:
                async with asyncio.timeout(min(delay, self.time_left + _GRACE)):
                    await self._progress()
            except TimeoutError:
                if self.time_left <= 0:
                    return
                self._start_next()

    async def end(self) -> None:
        """Cancel calls that were not sent and calls that are overdue. The others run to their end."""
        self.is_over = True
        overdue = self.time_left <= -_GRACE / 2
        stopped = [task for task in self._pending if overdue or task not in self._sent]
        for task in stopped:
            task.cancel()
        self._owner.finish(task for task in self._pending if task not in stopped)
        await asyncio.gather(*stopped, return_exceptions=True)

    def started(self, task: asyncio.Task[PeerAnswer | None] | None) -> None:
        """Record that the call of a task has its share and is being sent."""
        assert task is not None
        self._sent.add(task)
        self.asked += 1

    async def _progress(self) -> None:
        """Wait until no pending answer can be better than the best so far."""
        while True:
            self._changed.clear()
            await self._changed.wait()
            if not self._is_worth_waiting():
                return

    def _could_win(self, rank: AnswerRank) -> bool:
        return self.best is None or rank > self.best.rank

    def _is_worth_waiting(self) -> bool:
        return any(self._could_win(rank) for rank in self._pending.values())

    def _start_next(self) -> bool:
        """Start the next wave, without peers that could not return a better answer. Returns False if there is none.

        Once there is an answer, all peers that could return a better one are asked at once.
        """
        links: list[PeerLink] = []
        while self._waves and (not links or self.best is not None):
            links += [link for link in self._waves.popleft() if self._could_win(best_rank_of(link.peer))]
        for link in links:
            task = asyncio.create_task(self._owner.call(link, self))
            self._pending[task] = best_rank_of(link.peer)
            task.add_done_callback(self._ended)
        return bool(links)

    def _ended(self, task: asyncio.Task[PeerAnswer | None]) -> None:
        self._pending.pop(task, None)
        self._sent.discard(task)
        found = None
        if task.cancelled() or task.exception() is not None:
            self.failures += 1
        else:
            found = task.result()
        if found is not None and not self.is_over and self._could_win(found.rank):
            self.best = found
            if self._waves:
                self._start_next()
        self._changed.set()
