"""Indexes for lists of refused deliveries by code, and by contract in the order of their times.

The previous release works with them too.
"""

from alembic import op

revision = "0022"
down_revision = "0021"

STATEMENTS = (
    "create index refusal_code on refusal (code, at)",
    "drop index refusal_contract_emaid",
    "create index refusal_contract_emaid_at on refusal_contract (emaid, at)",
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("drop index refusal_contract_emaid_at")
    op.execute("create index refusal_contract_emaid on refusal_contract (emaid)")
    op.execute("drop index refusal_code")
