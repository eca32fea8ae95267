"""Distribution of the tables over a Citus cluster, with the same schema and the same queries.

A vehicle and its rows are on one node: vehicle, contract, outbox and delivery are distributed by PCID and co-located.
emaid_claim is distributed by EMAID. evidence is a reference table on every node, because contracts are joined with it.
All other tables are small or read one row at a time, and stay on the coordinator, the node that the URL names. So do
the records of refused deliveries: a million at most, listed across vehicles by their times, and written in batches of
many vehicles, which would be a distributed transaction each (docs/decisions/0038).
"""

from __future__ import annotations

from typing import Final

import asyncpg

from ccp.errors import ConfigurationError
from ccp.server.storage.engine import postgres_commands, schema, schema_version

# Table: distribution column, and the table to co-locate with. In this order, as a table must exist to co-locate with.
DISTRIBUTED: Final = {
    "vehicle": ("pcid", "none"),
    "contract": ("pcid", "vehicle"),
    "outbox": ("pcid", "vehicle"),
    "delivery": ("pcid", "vehicle"),
    "emaid_claim": ("emaid", "none"),
}
REFERENCE_TABLES: Final = ("evidence",)


def distribute(url: str) -> list[tuple[str, str]]:
    """Distribute the tables that are not distributed yet. Returns each table with its state.

    Raises ConfigurationError.
    """
    if not schema.is_postgres(url):
        raise ConfigurationError("Only a PostgreSQL database with the extension citus can be distributed.")
    return schema.finish(_distribute(url))


async def _distribute(url: str) -> list[tuple[str, str]]:
    connection = await postgres_commands.connect(url, statement_timeout=None)
    try:
        async with connection.transaction():
            schema_version.check_revision(await postgres_commands.revision(connection))
            if await connection.fetchval("select 1 from pg_extension where extname = 'citus'") is None:
                raise ConfigurationError(
                    "The database lacks the extension citus; a superuser adds it with 'create extension citus'."
                )
            done = {row[0] for row in await connection.fetch("select logicalrelid::text from pg_dist_partition")}
            result = []
            for table, (column, colocate_with) in DISTRIBUTED.items():
                if table not in done:
                    await connection.execute(
                        "select create_distributed_table($1::text::regclass, $2, colocate_with => $3)",
                        table, column, colocate_with,
                    )  # fmt: skip
                result.append((table, "distributed already" if table in done else f"distributed by {column}"))
            for table in REFERENCE_TABLES:
                if table not in done:
                    await connection.execute("select create_reference_table($1::text::regclass)", table)
                result.append((table, "on every node already" if table in done else "on every node"))
        return result
    except asyncpg.PostgresError as exc:
        raise ConfigurationError(f"The database cannot be distributed: {exc}.") from exc
    finally:
        await connection.close()
