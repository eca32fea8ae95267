"""Negative cache: peers that recently had no contract for a vehicle.

    cache = NegativeCache(ttl=30, clock=time.monotonic)
    cache.add(vehicle, "pool-b")             # the peer answered that it has no contract
    cache.has(vehicle, "pool-b")             # True for the next 30 seconds

Only an explicit negative answer is cached: a peer that failed or did not answer may have a contract. An entry expires
`ttl` seconds after its first negative answer, so no answer counts for longer. A contract that is published at a peer
meanwhile is found once the entry has expired.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from ccp.ids import PCID, Namespace
from ccp.verify import VerifiedInstallationRequest

Vehicle: TypeAlias = tuple[PCID, Namespace, int]
"""A vehicle, the edition that it speaks, and a hash of its certificate and of the roots that it lists."""

MAX_VEHICLES: Final = 20_000
"""Some 6 MB. If the cache is full, the oldest entry is removed. One party's broadcasts at their limit do not fill it
within the default time to live.
"""


def vehicle_of(verified: VerifiedInstallationRequest) -> Vehicle:
    """The cache key of a request: everything that a pool's answer depends on.

    A pool stores contracts for each edition separately, and delivers none under a root that the vehicle does not list,
    and none that was made for another key of the vehicle.
    """
    request = verified.request
    return verified.pcid, request.namespace, hash((request.certificate, request.root_ids))


class NegativeCache:
    """The negative cache of one worker."""

    def __init__(self, ttl: float, clock: Callable[[], float], max_vehicles: int = MAX_VEHICLES) -> None:
        """ttl: seconds; 0 disables the cache. clock: monotonic seconds."""
        self._ttl = ttl
        self._clock = clock
        self._max = max_vehicles
        self._bits: dict[str, int] = {}
        # By vehicle: when the entry expires, and the bits of the peers. Oldest first, as all have the same lifetime.
        self._entries: dict[Vehicle, tuple[float, int]] = {}
        self._of: dict[PCID, list[Vehicle]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def has(self, vehicle: Vehicle, peer: str) -> bool:
        """Whether the peer recently had no contract for the vehicle."""
        expires, peers = self._entries.get(vehicle, (0.0, 0))
        return bool(peers & self._bits.get(peer, 0)) and self._clock() < expires

    def add(self, vehicle: Vehicle, peer: str) -> None:
        """Record that the peer has no contract for the vehicle."""
        if not self._ttl:
            return
        now = self._clock()
        expires, peers = self._entries.get(vehicle, (0.0, 0))
        if expires <= now:
            self._remove(vehicle)
            self._make_room(now)
            expires, peers = now + self._ttl, 0
            self._of.setdefault(vehicle[0], []).append(vehicle)
        self._entries[vehicle] = expires, peers | self._bits.setdefault(peer, 1 << len(self._bits))

    def discard(self, vehicle: Vehicle, peer: str) -> None:
        """Record that the peer has a contract for the vehicle."""
        if self.has(vehicle, peer):
            expires, peers = self._entries[vehicle]
            self._entries[vehicle] = expires, peers & ~self._bits[peer]

    def forget(self, pcid: PCID, peer: str) -> None:
        """Remove what a peer answered for a vehicle, in every edition: the peer's contracts for it have changed."""
        for vehicle in self._of.get(pcid, ()):
            self.discard(vehicle, peer)

    def forget_peer(self, peer: str) -> None:
        """Remove everything that a peer answered."""
        bit = self._bits.get(peer, 0)
        for vehicle, (expires, peers) in self._entries.items():
            self._entries[vehicle] = expires, peers & ~bit

    def clear(self) -> None:
        """Remove everything, because the registered peers or their contracts changed."""
        self._entries.clear()
        self._of.clear()
        self._bits.clear()

    def _remove(self, vehicle: Vehicle) -> None:
        if self._entries.pop(vehicle, None) is None:
            return
        of_pcid = self._of[vehicle[0]]
        of_pcid.remove(vehicle)
        if not of_pcid:
            del self._of[vehicle[0]]

    def _make_room(self, now: float) -> None:
        while self._entries:
            oldest = next(iter(self._entries))
            if self._entries[oldest][0] > now and len(self._entries) < self._max:
                return
            self._remove(oldest)
