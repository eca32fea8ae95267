"""Refused deliveries with their reasons, and counters of requests by hour.

Expands only: the previous release does not use the tables.
"""

from alembic import op

revision = "0020"
down_revision = "0019"

STATEMENTS = (
    # id: trace id. at: microseconds since 1970. client_id: the caller. emaid: in the path of the request. digest:
    # SHA-256 of the vehicle's message. check_name: the failed check. request: the message, EXI, if it is kept.
    """
    create table refusal (
        id text primary key,
        at bigint not null,
        client_id text not null,
        operation text not null,
        dialect text not null,
        status bigint not null,
        edition text,
        pcid text,
        wmi text,
        emaid text,
        digest text,
        code text not null,
        check_name text,
        reason text not null,
        request bytea
    )
    """,
    "create index refusal_at on refusal (at)",
    "create index refusal_client_id on refusal (client_id, at)",
    "create index refusal_pcid on refusal (pcid, at)",
    "create index refusal_wmi on refusal (wmi, at)",
    # Contracts of the vehicle that could not be delivered (concerned = 1), and EMAIDs that a kept request contains (0).
    """
    create table refusal_contract (
        refusal_id text not null,
        emaid text not null,
        provider_id text not null,
        concerned bigint not null,
        at bigint not null,
        primary key (refusal_id, emaid)
    )
    """,
    "create index refusal_contract_provider_id on refusal_contract (provider_id, at)",
    "create index refusal_contract_emaid on refusal_contract (emaid)",
    # hour: seconds since 1970. code: empty for a request that was not refused.
    """
    create table request_count (
        hour bigint not null,
        dialect text not null,
        operation text not null,
        code text not null,
        number bigint not null,
        primary key (hour, dialect, operation, code)
    )
    """,
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    for table in ("request_count", "refusal_contract", "refusal"):
        op.execute(f"drop table {table}")
