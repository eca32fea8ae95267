"""Numbers of what a database holds, for the start of a server; read without starting a storage engine."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

from ccp.errors import ConfigurationError
from ccp.server.storage.engine import schema

_COUNTS: Final = """
    select 'anchor' as kind, role, count(*) as number from trust_anchor group by role
    union all select 'party', '', count(*) from party
    union all select 'peer', '', count(*) from peer
    """


@dataclass(frozen=True, slots=True)
class Overview:
    """Trusted certificates by role, and registered parties and peers, disabled ones included."""

    anchors: dict[str, int]
    parties: int
    peers: int


def overview(url: str) -> Overview:
    """Count. Blocks, also when called within an event loop. Raises ConfigurationError."""
    rows = schema.finish(_postgres_rows(url)) if schema.is_postgres(url) else _sqlite_rows(url)
    anchors = {role: number for kind, role, number in rows if kind == "anchor"}
    counts = {kind: number for kind, _, number in rows if kind != "anchor"}
    return Overview(anchors, counts["party"], counts["peer"])


def _sqlite_rows(url: str) -> list[Any]:
    path = schema.sqlite_file(url)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(_COUNTS).fetchall()
    except sqlite3.DatabaseError as exc:
        raise ConfigurationError(f"The database {path} cannot be read: {exc}.") from exc


async def _postgres_rows(url: str) -> list[Any]:
    import asyncpg

    from ccp.server.storage.engine import postgres_commands

    connection = await postgres_commands.connect(url)
    try:
        async with connection.transaction():
            return [tuple(row) for row in await connection.fetch(_COUNTS)]
    except asyncpg.PostgresError as exc:
        raise ConfigurationError(f"The database cannot be read: {exc}.") from exc
    finally:
        connection.terminate()
