"""Certificates of the fingerprints in the configuration, and names of CRL distribution points."""

from alembic import op

revision = "0007"
down_revision = "0006"

STATEMENTS = (
    # By fingerprint, so that the name and key of the CA are known when another certificate of it is used. One row for
    # each configured fingerprint.
    """
    create table issuer_certificate (
        fingerprint text primary key,
        certificate bytea not null,
        seen_at bigint not null
    )
    """,
    # JSON list of other names of the same distribution point, from the certificate that named the address; null in
    # older rows.
    "alter table crl add column names text",
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("alter table crl drop column names")
    op.execute("drop table issuer_certificate")
