"""Indexes for a webhook's deliveries in one state, its dead ones in the order of their keys, and a party's sessions.

The previous release works with them too.
"""

from alembic import op

revision = "0023"
down_revision = "0022"

STATEMENTS = (
    "create index delivery_state on delivery (webhook_id, state, created_at)",
    "drop index delivery_created_at",
    "drop index delivery_dead",
    "create index delivery_dead on delivery (webhook_id, pcid, rev, part) where state = 'dead'",
    "create index console_session_client_id on console_session (client_id)",
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("drop index console_session_client_id")
    op.execute("drop index delivery_dead")
    op.execute("create index delivery_dead on delivery (webhook_id, created_at) where state = 'dead'")
    op.execute("create index delivery_created_at on delivery (webhook_id, created_at)")
    op.execute("drop index delivery_state")
