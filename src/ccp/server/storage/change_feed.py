"""Change feed: applies changes of other processes to an in-memory copy of a table, row by row.

A feed stores the number of the last change that it has applied (`ccp.server.storage.queries.change_counters`).
`refresh` reads the rows that the change log names since then. If the log does not reach back far enough, it reads the
whole table: at the start, after a long pause of this process, or after a change by a release without the log. Both read
in portions, between which other tasks of the event loop run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final, Protocol

from ccp.server.storage import Store
from ccp.server.storage.queries import change_counters
from ccp.server.storage.queries.change_counters import ChangeCounter

PORTION: Final = 200
"""Rows per portion: some milliseconds of the event loop."""
MAX_BEHIND: Final = 1000
"""Maximum number of changes that are applied one by one. Beyond that, reading the table costs less."""


class TableCopy(Protocol):
    """An in-memory copy of a table. Both methods may be called again after a failure."""

    async def reload(self) -> None:
        """Load all rows, in portions of `PORTION`, and drop the others."""

    async def apply(self, counter: ChangeCounter, after: int, last: int, keys: Collection[str]) -> None:
        """Load the rows of the changes with numbers above `after`, up to `last`; see `change_counters.CHANGED_KEYS`.

        keys: of these rows. A row that is no longer found was deleted.
        """


class ChangeFeed:
    """Follows the tables of some change counters."""

    def __init__(self, store: Store, counters: Collection[ChangeCounter], followed: TableCopy) -> None:
        self._store = store
        self._counters = tuple(counters)
        self._followed = followed
        self._numbers: dict[ChangeCounter, int] | None = None
        self._refreshing = asyncio.Lock()  # Older rows must not replace newer ones.

    async def refresh(self) -> None:
        """Apply every change that was committed before this call. Raises Unavailable."""
        async with self._refreshing:
            current = await self._read_numbers()
            if not (self._is_near(current) and await self._follow(current)):
                await self._reload()

    async def _read_numbers(self) -> dict[ChangeCounter, int]:
        numbers = await self._store.read(change_counters.read_all())
        return {counter: numbers.get(counter, 0) for counter in self._counters}

    def _is_near(self, current: dict[ChangeCounter, int]) -> bool:
        known = self._numbers
        return known is not None and all(
            0 <= current[counter] - known[counter] <= MAX_BEHIND for counter in self._counters
        )

    async def _follow(self, current: dict[ChangeCounter, int]) -> bool:
        """Apply the changes up to these numbers. Returns False if the log does not have all of them."""
        assert self._numbers is not None
        for counter in self._counters:
            while (after := self._numbers[counter]) < current[counter]:
                found = await self._store.read(change_counters.log_entries(counter, after, PORTION))
                if not found or [number for number, _ in found] != list(range(after + 1, after + 1 + len(found))):
                    return False
                last = found[-1][0]
                await self._followed.apply(counter, after, last, {key for _, key in found})
                self._numbers[counter] = last
                await asyncio.sleep(0)
        return True

    async def _reload(self) -> None:
        # The numbers first: a change in between has a greater number and is applied again.
        numbers = await self._read_numbers()
        await self._followed.reload()
        self._numbers = numbers
