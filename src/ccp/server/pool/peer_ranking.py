"""The order in which peers are asked: the likeliest first, then the others in waves.

A peer is likely to have a vehicle's contract if it is registered for a provider that the vehicle names (ISO 15118-20,
PrioritizedEMAIDs), or recently had a contract of that provider, or one for a vehicle of the same manufacturer (WMI).
The ranking affects the order only. Which answer is taken depends on its `AnswerRank`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

from ccp.ids import WMI, ProviderId

MAX_WAVES: Final = 4
_MIN_WAVE: Final = 4  # With fewer peers in a wave, waves only cost time.
_MAX_LIKELY: Final = 4
_RECENT_SECONDS: Final = 86_400.0
_MAX_KEYS: Final = 4_096
_MAX_PEERS: Final = 8  # Stored for one provider or manufacturer.

Peer = TypeVar("Peer")


class PeerRanking:
    """The ranking of one worker. Peers are named by their party ids."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: monotonic seconds."""
        self._clock = clock
        self._seen: OrderedDict[str, OrderedDict[str, float]] = OrderedDict()
        self._rotation = 0

    def record(self, peer: str, wmi: WMI, providers: Iterable[ProviderId]) -> None:
        """Record that the peer had contracts of these providers for a vehicle of this manufacturer."""
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
        """The likely peers, likeliest first.

        registered: peers that may be asked, with the providers that each is registered for. wanted: providers that the
        vehicle names.
        """
        found: dict[str, None] = {}
        for provider in wanted:
            found |= dict.fromkeys(name for name, providers in registered.items() if provider in providers)
        for key in (*wanted, wmi):
            found |= dict.fromkeys(name for name in self._recent(key) if name in registered)
        return list(found)[:_MAX_LIKELY]

    def waves(
        self, registered: Mapping[str, frozenset[ProviderId]], wmi: WMI, wanted: Sequence[ProviderId]
    ) -> list[list[str]]:
        """All peers in the order in which to ask them, in at most `MAX_WAVES` waves. Arguments as of `likely`.

        The order of peers that are not likely rotates with each call.
        """
        first = self.likely(registered, wmi, wanted)
        others = [name for name in registered if name not in first]
        if others:
            self._rotation = (self._rotation + 1) % len(others)
            others = others[self._rotation :] + others[: self._rotation]
        left = MAX_WAVES - bool(first)
        size = max(_MIN_WAVE, -(-len(others) // left))
        return [*([first] if first else []), *(others[start : start + size] for start in range(0, len(others), size))]

    def _recent(self, key: str) -> list[str]:
        """Peers that recently had a contract for this provider or manufacturer, the latest first."""
        after = self._clock() - _RECENT_SECONDS
        return [name for name, at in reversed(self._seen.get(key, {}).items()) if at > after]
