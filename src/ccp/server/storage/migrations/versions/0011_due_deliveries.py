"""Index for finding due deliveries, however many others wait for a later time.

Expands only: the previous release does not use it.
"""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Apply the migration."""
    op.execute("create index delivery_lease_until on delivery (lease_until, webhook_id) where state = 'waiting'")


def downgrade() -> None:
    """Revert the migration."""
    op.execute("drop index delivery_lease_until")
