"""Audit trail, secrets of the pool, and validity times of keys and client secrets."""

from alembic import op

revision = "0003"
down_revision = "0002"

STATEMENTS = (
    # One row for each change of state and each refused access, hash-chained within its shard (lane). Several shards, so
    # that writers rarely wait for each other. subject (JSON) and salt are null after an erasure; commitment, a hash of
    # both, stays, and the chain remains valid.
    """
    create table audit (
        lane smallint not null,
        number bigint not null,
        at bigint not null,
        actor text not null,
        action text not null,
        outcome text not null,
        trace_id text,
        subject text,
        salt text,
        commitment text not null,
        hash text not null,
        primary key (lane, number)
    )
    """,
    "create index audit_at on audit (at)",
    # The chain head of each shard. Every writer to the shard locks it; it reveals a missing last row. All exist from
    # the start, so that a missing shard is detected too.
    """
    create table audit_head (
        lane smallint primary key,
        number bigint not null,
        hash text not null
    )
    """,
    "insert into audit_head (lane, number, hash) values "  # noqa: S608  constants
    + ", ".join(f"({lane}, 0, '{64 * '0'}')" for lane in range(16)),
    # Secrets that the pool generates once and all workers share, by name.
    """
    create table pool_secret (
        name text primary key,
        value text not null
    )
    """,
    # Microseconds. signs_from: null means since created_at. A key verifies until retired_at; null means without end.
    "alter table token_key add column signs_from bigint",
    "alter table token_key add column retired_at bigint",
    # Microseconds; null until the secret is replaced.
    "alter table party_secret add column expires_at bigint",
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("alter table party_secret drop column expires_at")
    op.execute("alter table token_key drop column retired_at")
    op.execute("alter table token_key drop column signs_from")
    op.execute("drop table pool_secret")
    op.execute("drop table audit_head")
    op.execute("drop table audit")
