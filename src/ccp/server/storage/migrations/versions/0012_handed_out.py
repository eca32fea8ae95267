"""Contracts that were handed out one by one, in answer to a request that a vehicle repeats.

Expands only: the previous release does not use it.
"""

from alembic import op

revision = "0012"
down_revision = "0011"

STATEMENTS = (
    # request: digest of the vehicle's request. contracts: JSON list of [EMAID, key], in order of delivery.
    # expires_at: microseconds since 1970; after it the row counts as absent.
    """
    create table handed_out (
        pcid text not null,
        client_id text not null,
        request text not null,
        contracts text not null,
        expires_at bigint not null,
        primary key (pcid, client_id, request)
    )
    """,
    "create index handed_out_client_id on handed_out (client_id, expires_at)",
    "create index handed_out_expires_at on handed_out (expires_at)",
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("drop table handed_out")
