"""Alembic environment: runs all pending migrations in one transaction, on the URL from `storage.engine.schema`.

A crash leaves the database as it was. Of two concurrent upgrades the second waits and finds nothing to do.
"""

from typing import Any

from alembic import context
from sqlalchemy import URL, Connection, create_engine, event, pool
from sqlalchemy.ext.asyncio import create_async_engine

from ccp.server.storage.engine import postgres_commands, schema

# Key of the advisory lock: an arbitrary number that nothing else in the same database uses.
UPGRADING = 0x6F706E6363637001


def migrate(connection: Connection) -> None:
    """Run the pending migrations on a connection."""
    # Alembic assumes that SQLite cannot roll back DDL and would commit after each migration; another process could then
    # run the next one too.
    context.configure(connection=connection, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


def on_sqlite(url: str) -> None:
    """Migrate a SQLite database."""
    engine = create_engine(URL.create("sqlite", database=str(schema.sqlite_file(url))), poolclass=pool.NullPool)

    @event.listens_for(engine, "connect")
    def _disable_implicit_transactions(connection, record):  # type: ignore[no-untyped-def]
        # The sqlite3 module opens no transaction for DDL.
        connection.isolation_level = None
        connection.execute("pragma secure_delete = on")  # As in the store: overwrite deleted content.

    @event.listens_for(engine, "begin")
    def _begin(connection):  # type: ignore[no-untyped-def]
        connection.exec_driver_sql("begin immediate")  # Before the revision is read.

    with engine.connect() as connection:
        migrate(connection)


async def on_postgres(url: str) -> None:
    """Migrate a PostgreSQL database."""
    # asyncpg parses the URL, as for the pool itself, so both accept the same URLs.
    connection = await postgres_commands.connect(url, statement_timeout=None)
    try:
        # One transaction around everything, including SQLAlchemy's queries at connection, and no named statement: a
        # pooler then runs all of it on one server session, and nothing remains there.
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
