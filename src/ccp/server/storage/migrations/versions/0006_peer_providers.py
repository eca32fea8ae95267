"""Provider ids whose contracts a peer holds, as agreed with its operator."""

from alembic import op

revision = "0006"
down_revision = "0005"

STATEMENTS = (
    # JSON list of provider ids; null or empty if unknown. The previous release does not write it.
    "alter table peer add column provider_ids text",
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("alter table peer drop column provider_ids")
