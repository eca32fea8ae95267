"""A store with a span for each query of a request. Attributes: semantic conventions for databases; no parameters."""

from __future__ import annotations

from datetime import datetime

from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query, T
from ccp.server.storage.engine.use import DatabaseUse
from ccp.server.tracing.spans import Spans


class TracedStore:
    """A `ccp.server.storage.Store` around another one."""

    def __init__(self, store: Store, spans: Spans, system: str) -> None:
        """system: name of the database system in the semantic conventions."""
        self._store = store
        self._spans = spans
        self._system = system

    async def open(self) -> None:
        """See `Store`."""
        await self._store.open()

    async def close(self) -> None:
        """See `Store`."""
        await self._store.close()

    async def read(self, query: Query[T]) -> T:
        """See `Store`."""
        name = getattr(query, "__name__", "query")
        with self._spans.within(f"read {name}", self._attributes("read", name), client=True):
            return await self._store.read(query)

    async def write(self, query: Query[T]) -> T:
        """See `Store`."""
        name = getattr(query, "__name__", "query")
        with self._spans.within(f"write {name}", self._attributes("write", name), client=True):
            return await self._store.write(query)

    def reasons(self) -> list[str]:
        """See `Store`."""
        return self._store.reasons()

    def use(self) -> DatabaseUse:
        """See `Store`."""
        return self._store.use()

    async def time(self) -> datetime | None:
        """See `Store`."""
        return await self._store.time()

    def _attributes(self, operation: str, query: str) -> dict[str, str | int]:
        return {"db.system.name": self._system, "db.operation.name": operation, "db.query.summary": query}
