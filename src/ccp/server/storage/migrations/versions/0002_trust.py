"""Revocation evidence, and data of the Provisioning Certificate Pool on vehicles.

Expands only: the previous release still runs on it.
"""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    # Revocation status of a certificate. issuer: SHA-256 (hex) of the issuer's name and public key. serial:
    # hexadecimal. status: good, revoked (final) or unknown. source: kind and address of the source.
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
    # The last accepted CRL of an issuer from an address; its serial numbers are in evidence. It is fetched again at
    # refresh_at. number: decimal, up to twenty bytes.
    """
    create table crl (
        issuer text not null,
        url text not null,
        issuer_certificate bytea not null,
        number text,
        this_update bigint not null,
        next_update bigint not null,
        etag text,
        last_modified text,
        fetched_at bigint not null,
        refresh_at bigint not null,
        primary key (issuer, url)
    )
    """,
    "create index crl_refresh_at on crl (refresh_at)",
    # Certificates whose OCSP status is requested again at refresh_at, until they expire. DER; not_after in seconds.
    """
    create table watched_certificate (
        issuer text not null,
        serial text not null,
        certificate bytea not null,
        issuer_certificate bytea not null,
        not_after bigint not null,
        refresh_at bigint not null,
        primary key (issuer, serial)
    )
    """,
    "create index watched_certificate_refresh_at on watched_certificate (refresh_at)",
    # The certificates of both chains without the roots, the contract certificate first, as JSON:
    # [[issuer, serial, [CRL address, …] or null], …]; null in rows of earlier releases.
    "alter table contract add column certificates text",
    # Issuer and serial number of the contract certificate, to find revoked contracts.
    "alter table contract add column certificate_issuer text",
    "alter table contract add column certificate_serial text",
    "create index contract_certificate on contract (certificate_issuer, certificate_serial)",
    "create index contract_valid_to on contract (valid_to)",
    # SHA-256 (hex) of the vehicle's public key that the contract key was encrypted for; null if the PCP did not know
    # it.
    "alter table contract add column provisioning_key text",
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("drop index contract_valid_to")
    op.execute("drop index contract_certificate")
    op.execute("alter table contract drop column certificate_serial")
    op.execute("alter table contract drop column certificate_issuer")
    op.execute("alter table contract drop column provisioning_key")
    op.execute("alter table contract drop column certificates")
    op.execute("drop table watched_certificate")
    op.execute("drop table crl")
    op.execute("drop table evidence")
