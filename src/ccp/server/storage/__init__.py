"""Where contracts, parties, anchors and events are kept.

`contracts`, `parties`, `anchors` and `keys` hold one function per question (see `steps`); an engine runs them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from ccp.server.storage.engine.query import Query, T
from ccp.server.storage.engine.schema import is_postgres, sqlite_file
from ccp.server.storage.engine.time_limits import REQUESTS, TimeLimits


class Store(Protocol):
    """An engine. `read` sees one snapshot; `write` is one transaction and returns when it is durable."""

    async def open(self) -> None:
        """Connect and check that the schema is the one this release needs. Raises ConfigurationError."""

    async def close(self) -> None: ...

    async def read(self, query: Query[T]) -> T:
        """Ask a question. It sees the newest committed state, and all its statements see the same one.

        Where a question is marked `newest`, each of its statements may see a newer state than the one before. Raises
        Unavailable, at the latest when the time for a question of its kind is over (`time_limits`).
        """

    async def write(self, change: Query[T]) -> T:
        """Run the change and commit it; nothing of it stays when it raises.

        Raises Unavailable when it cannot within the time for a change of its kind, or when it is not known whether it
        did: then it says so.
        """

    def reasons(self) -> list[str]:
        """A sentence for each part of the engine that does not work now, for readiness. Waits for nothing."""

    async def time(self) -> datetime | None:
        """The database server's clock; None where the engine has none but this machine's. Raises Unavailable."""


def connect(url: str, connections: int = 4, limits: TimeLimits = REQUESTS) -> Store:
    """The engine that a database URL names. connections: the most to a server. limits: for its answers.

    Raises ConfigurationError.
    """
    if is_postgres(url):
        from ccp.server.storage.engine.postgres import PostgresStore

        return PostgresStore(url, connections, limits)
    from ccp.server.storage.engine.sqlite import SQLiteStore

    return SQLiteStore(sqlite_file(url), limits)
