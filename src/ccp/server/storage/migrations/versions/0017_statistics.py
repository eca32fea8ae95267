"""Statistics of the pool, counted by one process at a time.

Expands only: the previous release does not use the table.
"""

from alembic import op

revision = "0017"
down_revision = "0016"

STATEMENTS = (
    # name: what is counted. counted_at: microseconds since 1970 of the last count; 0: none. lease_until: until then one
    # process counts. payload: JSON.
    """
    create table statistics (
        name text primary key,
        counted_at bigint not null,
        lease_until bigint not null,
        payload text not null
    )
    """,
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("drop table statistics")
