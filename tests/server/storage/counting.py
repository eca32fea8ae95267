"""A store wrapper that records the statements of its queries."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query, Row, Statement, T


@dataclass
class CountingStore:
    """Records each statement with its number of rows, except statements on the audit trail."""

    inner: Store
    seen: list[tuple[str, int]] = field(default_factory=list)
    all: list[tuple[str, Row]] = field(default_factory=list)

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def time(self) -> datetime | None:
        return await self.inner.time()

    async def read(self, query: Query[T]) -> T:
        return await self.inner.read(self._counted(query))

    async def write(self, query: Query[T]) -> T:
        return await self.inner.write(self._counted(query))

    def _counted(self, query: Query[T]) -> Query[T]:
        query = iter(query)  # type: ignore[assignment]
        try:
            statement: Statement = next(query)
            while True:
                rows = yield statement
                if "audit" not in statement[0]:
                    self.seen.append((statement[0], len(rows)))
                    self.all.append(statement)
                statement = query.send(rows)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def taken(self) -> list[tuple[str, int]]:
        """Statements with their numbers of rows, since the last call."""
        seen, self.seen = self.seen, []
        return seen
