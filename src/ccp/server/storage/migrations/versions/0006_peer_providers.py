"""Which providers' contracts a peer holds, as far as its operator has said."""

from alembic import op

revision = "0006"
down_revision = "0005"

STATEMENTS = (
    # JSON list of provider ids; null or empty where nothing is known. The release before does not write it.
    "alter table peer add column provider_ids text",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("alter table peer drop column provider_ids")
