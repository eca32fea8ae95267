"""Rotation of webhook secrets, and the form of signatures.

Expands only: the previous release does not read the new columns, and its rows get their defaults.
"""

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Apply the migration."""
    op.execute("alter table webhook add column signature_format text not null default 'sha256'")
    # JSON list of [secret, end of validity in microseconds since 1970], newest first.
    op.execute("alter table webhook add column previous_secrets text not null default '[]'")


def downgrade() -> None:
    """Revert the migration."""
    op.execute("alter table webhook drop column previous_secrets")
    op.execute("alter table webhook drop column signature_format")
