"""Facts about a PostgreSQL server that decide whether what is acknowledged is durable, for diagnosis."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from ccp.errors import ConfigurationError
from ccp.server.storage.engine import postgres_commands

_STATEMENT_TIMEOUT: Final = 5.0


@dataclass(frozen=True, slots=True)
class Standby:
    """name: application_name. lag_bytes, lag_seconds: None without the right to see them (role pg_monitor)."""

    name: str
    state: str | None
    sync_state: str | None
    lag_bytes: int | None
    lag_seconds: float | None


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """version: as the server shows it. settings: values of `show`. schema: revision; None without a schema.

    size: of the database, bytes. now: the server's clock. own: the connections of this user that exist now.
    """

    version: str
    schema: str | None
    settings: dict[str, str]
    in_recovery: bool
    standbys: tuple[Standby, ...]
    size: int
    now: datetime
    own: int


_SETTINGS: Final = (
    "server_encoding", "synchronous_commit", "fsync", "full_page_writes", "synchronous_standby_names",
    "default_transaction_read_only",
    "max_connections", "superuser_reserved_connections",
)  # fmt: skip
_STANDBYS: Final = """
select application_name, state, sync_state,
    pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint, extract(epoch from replay_lag)::float8
from pg_stat_replication order by application_name limit 50
"""


async def inspect(url: str) -> ServerFacts:
    """Ask a server, on a connection of its own. Raises ConfigurationError, also for an encoding other than UTF8."""
    connection = await postgres_commands.connect(url, _STATEMENT_TIMEOUT)
    try:
        async with connection.transaction(readonly=True):
            schema = await postgres_commands.revision(connection)
            rows = await connection.fetch(
                "select name, setting from pg_settings where name = any ($1::text[])", list(_SETTINGS)
            )
            in_recovery = bool(await connection.fetchval("select pg_is_in_recovery()"))
            standbys = () if in_recovery else await connection.fetch(_STANDBYS)
            version, size, now, own = await connection.fetchrow(  # type: ignore[misc]
                "select current_setting('server_version'), pg_database_size(current_database()), clock_timestamp(), "
                "(select count(*) from pg_stat_activity where usename = current_user and backend_type = "
                "'client backend')"
            )
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as exc:
        raise ConfigurationError(f"The database server cannot be examined: {exc}.") from exc
    finally:
        connection.terminate()
    return ServerFacts(
        str(version),
        schema,
        {row[0]: row[1] for row in rows},
        in_recovery,
        tuple(Standby(*row) for row in standbys),
        int(size),
        now,
        int(own),
    )
