"""An index by which deliveries that are due are found, however many others wait for later.

Expands only: the release before this one has no use for it.
"""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.execute("create index delivery_lease_until on delivery (lease_until, webhook_id) where state = 'waiting'")


def downgrade() -> None:
    op.execute("drop index delivery_lease_until")
