"""Peers: other pools that may be asked for a contract."""

from alembic import op

revision = "0004"
down_revision = "0003"

STATEMENTS = (
    # secret and token in clear text, because the pool has to send them; the file is private, as for token_key.
    # v2g_roots: JSON list of fingerprints; empty if the peer is asked for every vehicle.
    """
    create table peer (
        party_id text primary key,
        base_url text not null,
        dialect text not null,
        client_id text,
        secret text,
        token_url text,
        audience text,
        token text,
        v2g_roots text not null,
        enabled boolean not null,
        created_at bigint not null
    )
    """,
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("drop table peer")
