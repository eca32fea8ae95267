"""Indexes for purging: revoked certificates, and contracts by expiry in the order of a cursor.

Expands only: the previous release uses the second index in place of the one that it replaces.
"""

from alembic import op

revision = "0010"
down_revision = "0009"

STATEMENTS = (
    # Partial: evidence on a valid certificate, which every publication writes, is not in it.
    "create index evidence_revoked on evidence (issuer, serial) where status = 'revoked'",
    # With the EMAID, because a whole fleet may expire in the same second.
    "create index contract_expiry on contract (valid_to, emaid)",
    "drop index contract_valid_to",
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("create index contract_valid_to on contract (valid_to)")
    op.execute("drop index contract_expiry")
    op.execute("drop index evidence_revoked")
