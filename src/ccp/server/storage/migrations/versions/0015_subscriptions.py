"""Subscriptions of this pool to the events of other systems.

Expands only: the previous release does not use the table.
"""

from alembic import op

revision = "0015"
down_revision = "0014"

STATEMENTS = (
    # secret in clear text, because the pool verifies signatures with it; the file is private, as for peer. endpoint_id
    # and secret are null until the other system has accepted the subscription. events: JSON list of names.
    """
    create table subscription (
        id text primary key,
        source text not null unique,
        url text not null,
        endpoint_id text,
        secret text,
        events text not null,
        created_at bigint not null,
        updated_at bigint not null
    )
    """,
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("drop table subscription")
