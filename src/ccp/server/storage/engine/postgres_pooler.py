"""Detection of a connection pooler before a PostgreSQL server, such as PgBouncer in transaction mode.

Such a pooler runs the transactions of one client session on any of its server sessions. So nothing may outlive a
transaction: no named prepared statement, no session setting. asyncpg sends a statement and its execution separately, so
even an unnamed statement needs a transaction around both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import asyncpg

Connection: TypeAlias = "asyncpg.Connection[Any]"

SIGNS: Final = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
"""Errors about a named statement that another server session holds, or that another client has prepared."""


async def is_between(connection: Connection) -> bool:
    """Whether a pooler stands before the server: the server session is not the one announced to the connection.

    A pooler announces a process id of its own when it accepts a connection, because it has no server session for it
    yet. In session mode it does the same; then the pool works, with more round trips than necessary.
    """
    async with connection.transaction():
        pid: int = await connection.fetchval("select pg_backend_pid()")
    return pid != connection.get_server_pid()


def settings_of_transaction(settings: Mapping[str, str]) -> str:
    """Statements that make settings for one transaction. settings: trusted names and values, no user input."""
    return "; ".join(f"set local {name} = '{value}'" for name, value in settings.items())
