"""Run by Alembic on the URL that `ccp.store.schema` hands over: everything that is missing, in one transaction.

A crash leaves nothing half done, and of two upgrades at the same time the second finds nothing left to do.
"""

from alembic import context
from sqlalchemy import URL, Connection, create_engine, event, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

from ccp.store import postgres, schema

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
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: postgres.connect(url), poolclass=pool.NullPool
    )
    async with engine.begin() as connection:
        await connection.execute(text("select pg_advisory_xact_lock(:number)"), {"number": UPGRADING})
        await connection.run_sync(migrate)


url = context.config.attributes["url"]
if schema.is_postgres(url):
    schema.finish(on_postgres(url))
else:
    on_sqlite(url)
