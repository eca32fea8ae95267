"""Indexes for lists of a webhook's deliveries in one state, and for its dead deliveries in the order of their keys.

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
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("drop index delivery_dead")
    op.execute("create index delivery_dead on delivery (webhook_id, created_at) where state = 'dead'")
    op.execute("create index delivery_created_at on delivery (webhook_id, created_at)")
    op.execute("drop index delivery_state")
