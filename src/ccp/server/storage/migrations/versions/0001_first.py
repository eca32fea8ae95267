"""Vehicles, contracts, parties, anchors, keys and the outbox.

The same statements run on every engine. Times are whole seconds since 1970 (validity) or microseconds (wherever order
matters); certificates and messages are bytes. Tables that many parties write are keyed by the vehicle, which is the
shard key of a distributed engine. The claim on an EMAID has its own table, because a unique key has to contain the
shard key.
"""

from alembic import op

revision = "0001"
down_revision = None

TABLES = (
    # Every write to a vehicle locks this row. It holds the default, so there is at most one.
    """
    create table vehicle (
        pcid text primary key,
        rev bigint not null,
        default_emaid text
    )
    """,
    # One row for each variant. is_default repeats vehicle.default_emaid and is written under the vehicle's lock, so
    # that the query of a delivery needs this table only.
    """
    create table contract (
        pcid text not null,
        namespace text not null,
        emaid text not null,
        root_fingerprint text not null,
        is_default boolean not null,
        valid_from bigint not null,
        valid_to bigint not null,
        created_at bigint not null,
        updated_at bigint not null,
        rev bigint not null,
        root_serial text not null,
        root_dn text not null,
        remaining_from_end smallint,
        metadata text,
        certificate bytea not null,
        response bytea not null,
        primary key (pcid, namespace, emaid, root_fingerprint)
    )
    """,
    # An EMAID is bound to one vehicle in the whole pool.
    """
    create table emaid_claim (
        emaid text primary key,
        pcid text not null
    )
    """,
    # Undelivered events, written in the transaction of the change. rev: the vehicle's revision.
    """
    create table outbox (
        pcid text not null,
        rev bigint not null,
        kind text not null,
        emaid text not null,
        payload text not null,
        created_at bigint not null,
        lease_until bigint not null,
        attempts smallint not null,
        primary key (pcid, rev)
    )
    """,
    "create index outbox_created_at on outbox (created_at)",
    """
    create table party (
        client_id text primary key,
        name text not null unique,
        roles text not null,
        provider_ids text not null,
        all_providers boolean not null,
        wmis text not null,
        operator_ids text not null,
        enabled boolean not null,
        created_at bigint not null
    )
    """,
    # An id has at most one owner.
    """
    create table party_owns (
        kind text not null,
        id text not null,
        client_id text not null,
        primary key (kind, id)
    )
    """,
    """
    create table party_secret (
        client_id text not null,
        created_at bigint not null,
        hash text not null,
        primary key (client_id, created_at)
    )
    """,
    """
    create table trust_anchor (
        role text not null,
        fingerprint text not null,
        is_root boolean not null,
        certificate bytea not null,
        label text not null,
        source text not null,
        added_at bigint not null,
        primary key (role, fingerprint)
    )
    """,
    # Keys that sign access tokens: the newest signs, the others verify.
    """
    create table token_key (
        kid text primary key,
        private_key text not null,
        created_at bigint not null
    )
    """,
    # Change counters of the tables that workers hold in memory; workers compare them every second.
    """
    create table change_count (
        topic text primary key,
        number bigint not null
    )
    """,
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in TABLES:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    for table in (
        "change_count", "token_key", "trust_anchor", "party_secret", "party_owns", "party", "outbox",
        "emaid_claim", "contract", "vehicle",
    ):  # fmt: skip
        op.execute(f"drop table {table}")
