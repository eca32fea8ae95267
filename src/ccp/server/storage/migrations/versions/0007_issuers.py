"""Certificates that fingerprints in the configuration mean, and the names of places that CRLs came from."""

from alembic import op

revision = "0007"
down_revision = "0006"

STATEMENTS = (
    # By fingerprint, so that name and key of the CA are known also when another certificate of it comes. Few rows: one
    # for each fingerprint that is configured.
    """
    create table issuer_certificate (
        fingerprint text primary key,
        certificate bytea not null,
        seen_at bigint not null
    )
    """,
    # JSON list, what the certificate that named the address calls the same place otherwise; null in older rows.
    "alter table crl add column names text",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("alter table crl drop column names")
    op.execute("drop table issuer_certificate")
