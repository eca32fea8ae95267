"""Run by Alembic on the URL that `ccp.store.schema` hands over: everything that is missing, in one transaction.

The sqlite3 module would not open a transaction for DDL by itself. Here one starts before the revision is read, so a
crash leaves nothing half done, and of two upgrades at the same time the second finds nothing left to do.
"""

from alembic import context
from sqlalchemy import create_engine, event, pool

engine = create_engine(context.config.attributes["url"], poolclass=pool.NullPool)


@event.listens_for(engine, "connect")
def _leave_transactions_to_us(connection, record):  # type: ignore[no-untyped-def]
    connection.isolation_level = None


@event.listens_for(engine, "begin")
def _begin(connection):  # type: ignore[no-untyped-def]
    connection.exec_driver_sql("begin immediate")


with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
