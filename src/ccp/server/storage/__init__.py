"""Storage: contracts, parties, trust anchors, revocation data, events and the audit trail.

`queries` holds one function per query, one module per subject; an engine (`engine`) runs them. `migrations` holds the
schema.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Protocol

from ccp.server.storage.engine.query import Query, T
from ccp.server.storage.engine.schema import is_postgres, sqlite_file
from ccp.server.storage.engine.secret_codec import SecretCodec
from ccp.server.storage.engine.time_limits import REQUESTS, TimeLimits
from ccp.server.storage.engine.use import DatabaseUse


class Store(Protocol):
    """A storage engine. `read` sees one snapshot; `write` is one transaction and returns when it is durable."""

    async def open(self) -> None:
        """Connect, and check the schema revision. Raises ConfigurationError."""

    async def close(self) -> None:
        """Finish what is running, and disconnect."""

    async def read(self, query: Query[T]) -> T:
        """Run a query. It sees the latest committed state, and all its statements see the same snapshot.

        If it is marked `read_committed`, each statement may see a newer state than the one before. Raises Unavailable,
        at the latest when the time limit of its kind has passed (`time_limits`).
        """

    async def write(self, query: Query[T]) -> T:
        """Run a query and commit it. It is rolled back if it raises.

        Raises Unavailable if it cannot finish within the time limit of its kind, or if it is unknown whether it was
        committed; the message says which.
        """

    def reasons(self) -> list[str]:
        """A sentence for each part of the engine that is failing, for readiness. Does not block."""

    def use(self) -> DatabaseUse:
        """The connections in use. Does not block."""

    async def time(self) -> datetime | None:
        """The database server's clock; None if the engine runs on this machine. Raises Unavailable."""


def connect(
    url: str,
    connections: int = 4,
    limits: TimeLimits = REQUESTS,
    secrets_key_file: Path | None = None,
    *,
    may_lack_keys: bool = False,
) -> Store:
    """The engine for a database URL.

    connections: maximum to a server. limits: time limits of queries. secrets_key_file: with the keys for the secrets in
    the database. may_lack_keys: open a database also without the keys that it uses. Raises ConfigurationError.
    """
    codec = SecretCodec(secrets_key_file, may_lack_keys=may_lack_keys)
    if is_postgres(url):
        from ccp.server.storage.engine.postgres import PostgresStore

        return PostgresStore(url, connections, limits, codec)
    from ccp.server.storage.engine.sqlite import SQLiteStore

    return SQLiteStore(sqlite_file(url), limits, codec)
