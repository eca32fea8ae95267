"""Sessions of the operator's console.

Expands only: the previous release does not use the table.
"""

from alembic import op

revision = "0018"
down_revision = "0017"

STATEMENTS = (
    # id_hash: SHA-256 of the session id, in hexadecimal; the id itself is in the browser only. client_id: of a party,
    # null for a person of an OpenID provider. credential: SHA-256 of the stored hash of the secret, or the issuer.
    # agent: SHA-256 of the browser's User-Agent. Times: microseconds since 1970.
    """
    create table console_session (
        id_hash text primary key,
        actor text not null,
        client_id text,
        role text not null,
        credential text not null,
        agent text not null,
        created_at bigint not null,
        seen_at bigint not null,
        expires_at bigint not null
    )
    """,
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("drop table console_session")
