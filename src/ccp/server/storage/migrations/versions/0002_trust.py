"""Revocation evidence, and what the Provisioning Certificate Pool says of vehicles.

Expands only: the release before this one still runs on it.
"""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    # What is known of one certificate. issuer: SHA-256 (hex) of the issuer's name and public key. serial: hexadecimal.
    # status: good, revoked (final) or unknown. source: how and where it was learnt.
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
    # The last CRL of an issuer that was accepted from an address; its serial numbers are in evidence. A sweep asks
    # again at refresh_at. number: decimal, up to twenty octets.
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
    # Certificates whose OCSP responders a sweep asks again at refresh_at, until they expire. DER; not_after in seconds.
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
    # The certificates below the roots of both chains, the contract certificate first, as JSON:
    # [[issuer, serial, [CRL address, …] or null], …]; null before this release.
    "alter table contract add column certificates text",
    # The contract certificate's own key, to find the contracts that are revoked.
    "alter table contract add column certificate_issuer text",
    "alter table contract add column certificate_serial text",
    "create index contract_certificate on contract (certificate_issuer, certificate_serial)",
    "create index contract_valid_to on contract (valid_to)",
    # SHA-256 (hex) of the vehicle's public key that the contract key was encrypted for, where the PCP knew it.
    "alter table contract add column provisioning_key text",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("drop index contract_valid_to")
    op.execute("drop index contract_certificate")
    op.execute("alter table contract drop column certificate_serial")
    op.execute("alter table contract drop column certificate_issuer")
    op.execute("alter table contract drop column provisioning_key")
    op.execute("alter table contract drop column certificates")
    op.execute("drop table watched_certificate")
    op.execute("drop table crl")
    op.execute("drop table evidence")
