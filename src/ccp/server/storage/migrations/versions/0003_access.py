"""The audit trail, secrets of the pool itself, and times from and until which keys and client secrets are good."""

from alembic import op

revision = "0003"
down_revision = "0002"

STATEMENTS = (
    # One row for each change of state and each refused access, chained within its lane: hash covers the row before.
    # Many lanes, so that writers seldom wait for each other. subject (JSON) and salt are null once they are erased;
    # commitment, a hash of both, stays, and the chain with it.
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
    # The end of each lane: the row that every writer to it locks, and by which a missing last row is noticed. All are
    # there from the start, so that a lane that is missing altogether is noticed too.
    """
    create table audit_head (
        lane smallint primary key,
        number bigint not null,
        hash text not null
    )
    """,
    "insert into audit_head (lane, number, hash) values "  # noqa: S608  numbers are ours
    + ", ".join(f"({lane}, 0, '{64 * '0'}')" for lane in range(16)),
    # What the pool makes for itself once and all workers share, by name.
    """
    create table pool_secret (
        name text primary key,
        value text not null
    )
    """,
    # Microseconds. A key signs from then on (null: from its making), and verifies until it is retired (null: always).
    "alter table token_key add column signs_from bigint",
    "alter table token_key add column retired_at bigint",
    # Microseconds; null: until it is replaced.
    "alter table party_secret add column expires_at bigint",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("alter table party_secret drop column expires_at")
    op.execute("alter table token_key drop column retired_at")
    op.execute("alter table token_key drop column signs_from")
    op.execute("drop table pool_secret")
    op.execute("drop table audit_head")
    op.execute("drop table audit")
