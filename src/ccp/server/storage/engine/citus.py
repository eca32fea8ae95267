"""Spreading the tables over a Citus cluster, with the same schema and the same questions.

A vehicle and what belongs to it lie on one node: vehicle, contract, outbox and delivery are distributed by PCID and
co-located.
An EMAID's claim is distributed by EMAID. evidence is on every node, because contracts are joined with it. Everything
else is small or asked for one row at a time, and stays on the coordinator, which is the node that the URL names.
"""

from __future__ import annotations

from typing import Final

import asyncpg

from ccp.errors import ConfigurationError
from ccp.server.storage.engine import postgres, schema, schema_version

# In this order: the later ones of a group lie beside the first. The column, and the table to lie beside.
DISTRIBUTED: Final = {
    "vehicle": ("pcid", "none"),
    "contract": ("pcid", "vehicle"),
    "outbox": ("pcid", "vehicle"),
    "delivery": ("pcid", "vehicle"),
    "emaid_claim": ("emaid", "none"),
}
EVERYWHERE: Final = ("evidence",)


def distribute(url: str) -> list[tuple[str, str]]:
    """Distribute what is not distributed yet. Returns each table with what became of it. Raises ConfigurationError."""
    if not schema.is_postgres(url):
        raise ConfigurationError("Only a PostgreSQL database with the extension citus can be distributed.")
    return schema.finish(_distribute(url))


async def _distribute(url: str) -> list[tuple[str, str]]:
    connection = await postgres.connect(url, statement_timeout=None)
    try:
        async with connection.transaction():
            schema_version.check_revision(await postgres.revision(connection))
            if await connection.fetchval("select 1 from pg_extension where extname = 'citus'") is None:
                raise ConfigurationError(
                    "The database has no extension citus; a superuser makes it with 'create extension citus'."
                )
            done = {row[0] for row in await connection.fetch("select logicalrelid::text from pg_dist_partition")}
            told = []
            for table, (column, beside) in DISTRIBUTED.items():
                if table not in done:
                    await connection.execute(
                        "select create_distributed_table($1::text::regclass, $2, colocate_with => $3)",
                        table, column, beside,
                    )  # fmt: skip
                told.append((table, "distributed already" if table in done else f"distributed by {column}"))
            for table in EVERYWHERE:
                if table not in done:
                    await connection.execute("select create_reference_table($1::text::regclass)", table)
                told.append((table, "on every node already" if table in done else "on every node"))
        return told
    except asyncpg.PostgresError as exc:
        raise ConfigurationError(f"The database cannot be distributed: {exc}.") from exc
    finally:
        await connection.close()
