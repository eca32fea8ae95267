"""Takes over into memory what other processes change in a table, row by row.

A feed knows the number of the last change that it has taken over (`ccp.server.storage.queries.change_counters`).
`refresh` reads the rows that the log names since then. It reads the whole table where the log does not reach back: at
the start, when this process was away for long, or when a release without the log has changed something. Both happen in
portions, and other work of the event loop gets its turn between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final, Protocol

from ccp.server.storage import Store
from ccp.server.storage.queries import change_counters
from ccp.server.storage.queries.change_counters import ChangeCounter

PORTION: Final = 200
"""Rows that are read at a time: some milliseconds of the event loop."""
MAX_BEHIND: Final = 1000
"""Changes that are taken over one by one. Beyond that, reading the table costs less."""


class Followed(Protocol):
    """What a process has in memory of a table. Both methods may be called again after a failure."""

    async def reload(self) -> None:
        """Take over all rows, in portions of `PORTION`, and forget those that are gone."""

    async def apply(self, topic: ChangeCounter, after: int, last: int, keys: Collection[str]) -> None:
        """Take over the rows that the changes from the number behind `after` to `last` were about; see
        `changes.CHANGED`. keys: of these rows; one that is not found any more is gone.
        """


class ChangeFeed:
    """Follows the tables of some topics."""

    def __init__(self, store: Store, topics: Collection[ChangeCounter], followed: Followed) -> None:
        self._store = store
        self._topics = tuple(topics)
        self._followed = followed
        self._numbers: dict[ChangeCounter, int] | None = None
        self._refreshing = asyncio.Lock()  # What was read earlier must not replace what was read later.

    async def refresh(self) -> None:
        """Take over what was committed before this call. Raises Unavailable."""
        async with self._refreshing:
            current = await self._read_numbers()
            if not (self._is_near(current) and await self._follow(current)):
                await self._reload()

    async def _read_numbers(self) -> dict[ChangeCounter, int]:
        numbers = await self._store.read(change_counters.read_all())
        return {topic: numbers.get(topic, 0) for topic in self._topics}

    def _is_near(self, current: dict[ChangeCounter, int]) -> bool:
        known = self._numbers
        return known is not None and all(0 <= current[topic] - known[topic] <= MAX_BEHIND for topic in self._topics)

    async def _follow(self, current: dict[ChangeCounter, int]) -> bool:
        """Take over the changes up to these numbers. Returns False where the log does not have all of them."""
        assert self._numbers is not None
        for topic in self._topics:
            while (after := self._numbers[topic]) < current[topic]:
                found = await self._store.read(change_counters.log_entries(topic, after, PORTION))
                if not found or [number for number, _ in found] != list(range(after + 1, after + 1 + len(found))):
                    return False
                last = found[-1][0]
                await self._followed.apply(topic, after, last, {key for _, key in found})
                self._numbers[topic] = last
                await asyncio.sleep(0)
        return True

    async def _reload(self) -> None:
        # The numbers first: what is changed meanwhile has a greater one, and is taken over once more.
        numbers = await self._read_numbers()
        await self._followed.reload()
        self._numbers = numbers
