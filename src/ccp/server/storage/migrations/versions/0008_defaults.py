"""Provider of the default contract, stamps of changes, and provisioning events.

Expands only: the previous release still runs on it. Its rows have no stamp, and it does not change the stored provider.
"""

from alembic import op

revision = "0008"
down_revision = "0007"

STATEMENTS = (
    # The provider whose contract is or was the default, and whether the OEM chose a contract of that provider (null:
    # no). Both are null in rows of the previous release: then the provider is that of default_emaid, and the default
    # counts as automatic. Filling the column here would lock a large table for a long time.
    "alter table vehicle add column default_provider text",
    "alter table vehicle add column default_chosen boolean",
    # Microseconds since 1970: the last change or event of the vehicle; the last event that invalidated contracts.
    "alter table vehicle add column stamped_at bigint",
    "alter table vehicle add column provisioned_at bigint",
    "create index vehicle_provisioned_at on vehicle (provisioned_at) where provisioned_at is not null",
    # Microseconds from the start of the variant's publication to updated_at.
    "alter table contract add column waited bigint",
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("drop index vehicle_provisioned_at")
    op.execute("alter table contract drop column waited")
    for column in ("provisioned_at", "stamped_at", "default_chosen", "default_provider"):
        op.execute(f"alter table vehicle drop column {column}")
