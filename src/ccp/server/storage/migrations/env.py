"""Run by Alembic on the URL that `ccp.server.storage.engine.schema` hands over: everything that is missing, in one
transaction.

A crash leaves nothing half done, and of two upgrades at the same time the second finds nothing left to do.
"""

from typing import Any

from alembic import context
from sqlalchemy import URL, Connection, create_engine, event, pool
from sqlalchemy.ext.asyncio import create_async_engine

from ccp.server.storage.engine import postgres_commands, schema

# Any number will do that nothing else in the same database takes; it is not written anywhere else.
UPGRADING = 0x6F706E6363637001


def migrate(connection: Connection) -> None:
    # Alembic believes that SQLite cannot take back DDL, and would commit after each migration: another process that
    # looked in between would make the next one too.
    context.configure(connection=connection, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


def on_sqlite(url: str) -> None:
    engine = create_engine(URL.create("sqlite", database=str(schema.sqlite_file(url))), poolclass=pool.NullPool)

    @event.listens_for(engine, "connect")
    def _leave_transactions_to_us(connection, record):  # type: ignore[no-untyped-def]
        # The sqlite3 module would not open a transaction for DDL by itself.
        connection.isolation_level = None
        connection.execute("pragma secure_delete = on")  # As the store does: what is removed is overwritten.

    @event.listens_for(engine, "begin")
    def _begin(connection):  # type: ignore[no-untyped-def]
        connection.exec_driver_sql("begin immediate")  # Before the revision is read.

    with engine.connect() as connection:
        migrate(connection)


async def on_postgres(url: str) -> None:
    # The URL is asyncpg's to read, as it is for the pool itself: what one understands, the other does too.
    connection = await postgres_commands.connect(url, statement_timeout=None)
    try:
        # One transaction around everything, what SQLAlchemy asks when it connects included, and no statement with a
        # name: a pooler then gives all of it to one session of the server, and nothing stays there.
        async with connection.transaction():
            await connection.execute(f"select pg_advisory_xact_lock({UPGRADING})")

            async def connected() -> Any:
                return connection

            def creator() -> Any:
                return engine.sync_engine.dialect.dbapi.connect(  # type: ignore[union-attr]
                    async_creator_fn=connected, prepared_statement_cache_size=0, prepared_statement_name_func=str
                )

            engine = create_async_engine("postgresql+asyncpg://", creator=creator, poolclass=pool.StaticPool)
            async with engine.connect() as within:
                await within.run_sync(migrate)
                await within.commit()
    finally:
        connection.terminate()


url = context.config.attributes["url"]
if schema.is_postgres(url):
    schema.finish(on_postgres(url))
else:
    on_sqlite(url)
