"""Negative cache: which peers had nothing for which vehicle a short while ago.

    cache = NegativeCache(ttl=30, clock=time.monotonic)
    cache.add(vehicle, "pool-b")             # it said that it has nothing
    cache.has(vehicle, "pool-b")             # so for the next 30 seconds it is not asked again

Only an answer that says so gets here; a peer that failed or did not answer may have a contract. An entry ends `ttl`
seconds after the first peer of it said no, so that no answer counts for longer. A contract that appears at a peer
meanwhile is found when the entry has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from ccp.ids import PCID, Namespace
from ccp.verify import VerifiedInstallationRequest

Vehicle: TypeAlias = tuple[PCID, Namespace, int]
"""A vehicle, the edition that it speaks, and a hash of its certificate and of the roots that it lists."""

MAX_VEHICLES: Final = 20_000
"""Some 6 MB. The oldest entry goes first; one party's broadcasts at their limit do not fill this within the time."""


def vehicle_of(verified: VerifiedInstallationRequest) -> Vehicle:
    """What a pool's answer depends on: it holds contracts for each edition apart, delivers none under a root that the
    vehicle does not list, and none that was made for another key of the vehicle.
    """
    request = verified.request
    return verified.pcid, request.namespace, hash((request.certificate, request.roots))


class NegativeCache:
    """One for each worker."""

    def __init__(self, ttl: float, clock: Callable[[], float], max_vehicles: int = MAX_VEHICLES) -> None:
        """ttl: seconds; 0 remembers nothing."""
        self._ttl = ttl
        self._clock = clock
        self._max = max_vehicles
        self._bits: dict[str, int] = {}
        # By vehicle: when the entry ends, and the bits of the peers. Oldest first, as all live equally long.
        self._entries: dict[Vehicle, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def has(self, vehicle: Vehicle, peer: str) -> bool:
        ends, peers = self._entries.get(vehicle, (0.0, 0))
        return bool(peers & self._bits.get(peer, 0)) and self._clock() < ends

    def add(self, vehicle: Vehicle, peer: str) -> None:
        if not self._ttl:
            return
        now = self._clock()
        ends, peers = self._entries.get(vehicle, (0.0, 0))
        if ends <= now:
            self._entries.pop(vehicle, None)
            self._make_room(now)
            ends, peers = now + self._ttl, 0
        self._entries[vehicle] = ends, peers | self._bits.setdefault(peer, 1 << len(self._bits))

    def discard(self, vehicle: Vehicle, peer: str) -> None:
        """The peer has something for the vehicle."""
        if self.has(vehicle, peer):
            ends, peers = self._entries[vehicle]
            self._entries[vehicle] = ends, peers & ~self._bits[peer]

    def clear(self) -> None:
        """Forget everything, because peers changed."""
        self._entries.clear()
        self._bits.clear()

    def _make_room(self, now: float) -> None:
        while self._entries:
            oldest = next(iter(self._entries))
            if self._entries[oldest][0] > now and len(self._entries) < self._max:
                return
            del self._entries[oldest]
