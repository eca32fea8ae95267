"""Keys that encrypt the secrets in the database.

Expands only: the previous release does not use the table. It cannot read secrets that this release has encrypted, which
happens only where `secrets_key_file` is set.
"""

from alembic import op
from sqlalchemy import text

from ccp.errors import ConfigurationError

revision = "0016"
down_revision = "0015"

STATEMENTS = (
    # name: "current" for the key that encrypts, the key id itself for a key of values that are not encrypted anew yet.
    # key_id: hash of a key, which itself is in a file; "none" for clear text. chosen: false until the first encryption.
    """
    create table storage_key (
        name text primary key,
        key_id text not null,
        chosen boolean not null
    )
    """,
    "insert into storage_key (name, key_id, chosen) values ('current', 'none', false)",
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration. Raises ConfigurationError while secrets are encrypted, which older releases cannot read."""
    if op.get_bind().execute(text("select 1 from storage_key where key_id <> 'none'")).first() is not None:
        raise ConfigurationError(
            "The database's secrets are encrypted, which the older schema does not know: run "
            "'ccp keys rotate-storage --clear-text' first."
        )
    op.execute("drop table storage_key")
