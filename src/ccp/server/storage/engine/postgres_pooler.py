"""Connection poolers between this process and a PostgreSQL server, such as PgBouncer in transaction mode.

Such a pooler gives the transactions of one client session to any of its server sessions. Nothing may then outlive a
transaction: no prepared statement with a name, no setting of the session. asyncpg sends a statement and its execution
apart, so even an unnamed statement needs a transaction around both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import asyncpg

Connection: TypeAlias = "asyncpg.Connection[Any]"

SIGNS: Final = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
"""What a server says of a named statement that another server session holds, or another client has made."""


async def is_between(connection: Connection) -> bool:
    """Whether the server session differs from the one that was announced to the connection.

    A pooler names a process id of its own when it accepts a connection, because it has no server session for it yet. In
    session mode it does the same; that costs more round trips than it would have to, and works.
    """
    async with connection.transaction():
        pid: int = await connection.fetchval("select pg_backend_pid()")
    return pid != connection.get_server_pid()


def settings_of_transaction(settings: Mapping[str, str]) -> str:
    """Statements that set what otherwise is set for a session. settings: names and values of ours, not from outside."""
    return "; ".join(f"set local {name} = '{value}'" for name, value in settings.items())
