"""Stream of the audit trail: which process sends, and how far each kind of receiver has got.

Expands only: the previous release does not use the tables.
"""

from alembic import op

revision = "0019"
down_revision = "0018"

STATEMENTS = (
    # kind: file, syslog or webhook. lease_until: microseconds since 1970.
    """
    create table audit_stream (
        kind text primary key,
        holder text not null,
        lease_until bigint not null
    )
    """,
    # number, hash: of the last row of the lane that the receiver has confirmed.
    """
    create table audit_stream_position (
        kind text not null,
        lane smallint not null,
        number bigint not null,
        hash text not null,
        primary key (kind, lane)
    )
    """,
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("drop table audit_stream_position")
    op.execute("drop table audit_stream")
