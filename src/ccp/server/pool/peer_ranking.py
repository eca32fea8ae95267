"""Which peers are asked first: the likeliest ones, then the others in waves.

A peer is likely to have a vehicle's contract if it is registered for a provider that the vehicle names (ISO 15118-20,
PrioritizedEMAIDs), or lately had a contract of that provider, or one for a vehicle of the same manufacturer (WMI).
This decides the order and nothing else: which answer wins is decided by its standing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

from ccp.ids import WMI, ProviderId

MAX_WAVES: Final = 4
_MIN_WAVE: Final = 4  # With so few peers waves would only cost time.
_MAX_LIKELY: Final = 4
_LATELY: Final = 86_400.0  # Seconds.
_MAX_KEYS: Final = 4_096
_MAX_PEERS: Final = 8  # Remembered for one provider or manufacturer.

Peer = TypeVar("Peer")


class PeerRanking:
    """One for each worker. Peers are named by their party ids."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: OrderedDict[str, OrderedDict[str, float]] = OrderedDict()
        self._turn = 0

    def found(self, peer: str, wmi: WMI, providers: Iterable[ProviderId]) -> None:
        """The peer had contracts of these providers for a vehicle of this manufacturer."""
        now = self._clock()
        for key in (wmi, *providers):
            peers = self._seen.setdefault(key, OrderedDict())
            self._seen.move_to_end(key)
            peers[peer] = now
            peers.move_to_end(peer)
            if len(peers) > _MAX_PEERS:
                peers.popitem(last=False)
        while len(self._seen) > _MAX_KEYS:
            self._seen.popitem(last=False)

    def likely(
        self, registered: Mapping[str, frozenset[ProviderId]], wmi: WMI, wanted: Sequence[ProviderId]
    ) -> list[str]:
        """The likely peers, likeliest first. registered: those that may be asked, with the providers of each."""
        found: dict[str, None] = {}
        for provider in wanted:
            found |= dict.fromkeys(name for name, providers in registered.items() if provider in providers)
        for key in (*wanted, wmi):
            found |= dict.fromkeys(name for name in self._lately(key) if name in registered)
        return list(found)[:_MAX_LIKELY]

    def waves(
        self, registered: Mapping[str, frozenset[ProviderId]], wmi: WMI, wanted: Sequence[ProviderId]
    ) -> list[list[str]]:
        """All peers in the order in which to ask them: one wave after the other, at most `MAX_WAVES`.

        wanted: providers that the vehicle names. Peers of whom nothing is known take turns at being asked early.
        """
        first = self.likely(registered, wmi, wanted)
        rest = [name for name in registered if name not in first]
        if rest:
            self._turn = (self._turn + 1) % len(rest)
            rest = rest[self._turn :] + rest[: self._turn]
        left = MAX_WAVES - bool(first)
        size = max(_MIN_WAVE, -(-len(rest) // left))
        return [*([first] if first else []), *(rest[start : start + size] for start in range(0, len(rest), size))]

    def _lately(self, key: str) -> list[str]:
        """Peers with a contract under this key lately, the latest first."""
        after = self._clock() - _LATELY
        return [name for name, at in reversed(self._seen.get(key, {}).items()) if at > after]
