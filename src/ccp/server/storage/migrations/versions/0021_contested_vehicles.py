"""Index of the vehicles that are contested, for their list.

Expands only: the previous release does not use it.
"""

from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """Apply the migration."""
    op.execute("create index vehicle_contested on vehicle (pcid) where contested is not null")


def downgrade() -> None:
    """Revert the migration."""
    op.execute("drop index vehicle_contested")
