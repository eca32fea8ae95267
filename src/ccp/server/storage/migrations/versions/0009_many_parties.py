"""A log of changes of parties and webhooks, and the forms in which names of parties are compared.

Expands only: the release before this one still runs on it. What it changes is missing in the log, which workers of this
release notice by the numbers; and the name that it gives a party is not the one that the stored form was made of.
"""

from alembic import op
from sqlalchemy import text

from ccp.server.domain.parties import fold_name

revision = "0009"
down_revision = "0008"

STATEMENTS = (
    # The key of the row that a change was about, by the topic's number in change_count. The latest changes only.
    """
    create table change_log (
        topic text not null,
        number bigint not null,
        key text not null,
        primary key (topic, number)
    )
    """,
    # Client id and name as they are compared, and the name that folded_name was made of. Null in rows that the release
    # before has added.
    "alter table party add column folded_id text",
    "alter table party add column folded_name text",
    "alter table party add column folded_of text",
    "create index party_folded_id on party (folded_id)",
    "create index party_folded_name on party (folded_name)",
    "create index party_not_folded on party (client_id) where coalesce(folded_of, '') <> name",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
    connection = op.get_bind()
    rows = connection.execute(text("select client_id, name from party")).all()
    forms = [{"id": id, "folded_id": fold_name(id), "folded_name": fold_name(name), "name": name} for id, name in rows]
    statement = "update party set folded_id = :folded_id, folded_name = :folded_name, folded_of = :name"
    if forms:
        connection.execute(text(f"{statement} where client_id = :id"), forms)


def downgrade() -> None:
    op.execute("drop index party_not_folded")
    op.execute("drop index party_folded_name")
    op.execute("drop index party_folded_id")
    for column in ("folded_of", "folded_name", "folded_id"):
        op.execute(f"alter table party drop column {column}")
    op.execute("drop table change_log")
