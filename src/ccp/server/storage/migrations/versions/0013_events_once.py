"""Marks of events that are sent once: expired roots, expiring and undeliverable contracts, contested vehicles.

Expands only: the previous release does not read the new columns. It does not keep the marks up to date either, so
after a rolling upgrade some of these events may be repeated.
"""

from alembic import op

revision = "0013"
down_revision = "0012"

STATEMENTS = (
    "alter table trust_anchor add column expiry_reported boolean not null default false",
    # Of a variant. expiring_days: the shortest notice before the end of its validity that was given, null for none.
    # undeliverable: the reason that was reported, null for none.
    "alter table contract add column expiring_days smallint",
    "alter table contract add column undeliverable text",
    # JSON list: EMAIDs whose provider was told that the vehicle's default is contested; null for none.
    "alter table vehicle add column contested text",
    # Covers the search for expiring contracts: reading a row past its response costs several pages.
    "create index contract_validity on contract (valid_to, emaid, expiring_days)",
    "drop index contract_expiry",
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("create index contract_expiry on contract (valid_to, emaid)")
    op.execute("drop index contract_validity")
    op.execute("alter table vehicle drop column contested")
    op.execute("alter table contract drop column undeliverable")
    op.execute("alter table contract drop column expiring_days")
    op.execute("alter table trust_anchor drop column expiry_reported")
