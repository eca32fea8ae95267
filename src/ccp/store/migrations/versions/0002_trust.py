"""Revocation evidence, and what the Provisioning Certificate Pool says of vehicles.

Expands only: the release before this one still runs on it.
"""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    # What is known of one certificate. issuer: SHA-256 (hex) of the issuer's name and public key. serial: hexadecimal.
    """
    create table evidence (
        issuer text not null,
        serial text not null,
        status text not null,
        this_update bigint not null,
        next_update bigint not null,
        revoked_at bigint,
        source text not null,
        primary key (issuer, serial)
    )
    """,
    # The last CRL of an issuer that was accepted; its serials are in evidence.
    """
    create table crl (
        issuer text primary key,
        url text not null,
        number text,
        this_update bigint not null,
        next_update bigint not null,
        etag text,
        last_modified text,
        fetched_at bigint not null
    )
    """,
    # The certificates below the roots of both chains, as JSON: [[issuer, serial], …]; null before this release.
    "alter table contract add column certificates text",
    # SHA-256 (hex) of the vehicle's public key that the contract key was encrypted for, where the PCP knew it.
    "alter table contract add column provisioning_key text",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("alter table contract drop column provisioning_key")
    op.execute("alter table contract drop column certificates")
    op.execute("drop table crl")
    op.execute("drop table evidence")
