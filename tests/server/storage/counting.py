"""A store that notes what it is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query, Row, Statement, T


@dataclass
class CountingStore:
    """A store that notes each statement with the number of its rows, those of the audit trail left out."""

    inner: Store
    seen: list[tuple[str, int]] = field(default_factory=list)
    all: list[tuple[str, Row]] = field(default_factory=list)

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def time(self) -> datetime | None:
        return await self.inner.time()

    async def read(self, query: Query[T]) -> T:
        return await self.inner.read(self._counted(query))

    async def write(self, change: Query[T]) -> T:
        return await self.inner.write(self._counted(change))

    def _counted(self, steps: Query[T]) -> Query[T]:
        steps = iter(steps)  # type: ignore[assignment]
        try:
            statement: Statement = next(steps)
            while True:
                rows = yield statement
                if "audit" not in statement[0]:
                    self.seen.append((statement[0], len(rows)))
                    self.all.append(statement)
                statement = steps.send(rows)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def taken(self) -> list[tuple[str, int]]:
        """Statements and how many rows each had, since the last time."""
        seen, self.seen = self.seen, []
        return seen
