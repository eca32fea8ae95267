"""Change log of parties and webhooks, and folded names of parties.

Expands only: the previous release still runs on it. Its changes are missing in the log, which workers of this release
detect by the numbers. A name that it gives a party differs from the name that the folded form was made from.
"""

from alembic import op
from sqlalchemy import text

from ccp.server.domain.parties import fold_name

revision = "0009"
down_revision = "0008"

STATEMENTS = (
    # Key of the changed row, by the topic's number in change_count. Only the latest changes are kept.
    """
    create table change_log (
        topic text not null,
        number bigint not null,
        key text not null,
        primary key (topic, number)
    )
    """,
    # Client id and name in folded form, and the name that folded_name was made from. Null in rows of the previous
    # release.
    "alter table party add column folded_id text",
    "alter table party add column folded_name text",
    "alter table party add column folded_of text",
    "create index party_folded_id on party (folded_id)",
    "create index party_folded_name on party (folded_name)",
    "create index party_not_folded on party (client_id) where coalesce(folded_of, '') <> name",
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)
    connection = op.get_bind()
    rows = connection.execute(text("select client_id, name from party")).all()
    forms = [{"id": id, "folded_id": fold_name(id), "folded_name": fold_name(name), "name": name} for id, name in rows]
    statement = "update party set folded_id = :folded_id, folded_name = :folded_name, folded_of = :name"
    if forms:
        connection.execute(text(f"{statement} where client_id = :id"), forms)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("drop index party_not_folded")
    op.execute("drop index party_folded_name")
    op.execute("drop index party_folded_id")
    for column in ("folded_of", "folded_name", "folded_id"):
        op.execute(f"alter table party drop column {column}")
    op.execute("drop table change_log")
