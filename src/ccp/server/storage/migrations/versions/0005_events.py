"""Subscriptions of partners, and what is still to be told to each of them, or has been."""

from alembic import op

revision = "0005"
down_revision = "0004"

STATEMENTS = (
    # events, wmis, provider_ids: JSON lists, the names as subscribed and the filters; an empty filter is all that the
    # party owns. secret in clear: what is sent is signed with it.
    """
    create table webhook (
        id text primary key,
        client_id text not null,
        url text not null,
        description text not null,
        events text not null,
        wmis text not null,
        provider_ids text not null,
        metadata text not null,
        api_version text not null,
        enabled boolean not null,
        secret text not null,
        created_at bigint not null,
        updated_at bigint not null
    )
    """,
    "create index webhook_client_id on webhook (client_id)",
    # An event for one webhook and one namespace (part), by the revision of the vehicle that the event has. kind: the
    # name that the subscriber knows. payload: what is sent as such, JSON. created_at: of the change; queued_at: since
    # when it waits. lease_until: nobody sends it before then. state: waiting, delivered or dead.
    """
    create table delivery (
        pcid text not null,
        rev bigint not null,
        part smallint not null,
        webhook_id text not null,
        event_id text not null,
        kind text not null,
        emaid text not null,
        namespace text not null,
        payload text not null,
        created_at bigint not null,
        queued_at bigint not null,
        lease_until bigint not null,
        attempts smallint not null,
        state text not null,
        last_status integer,
        last_error text,
        finished_at bigint,
        primary key (pcid, rev, part, webhook_id)
    )
    """,
    # What is due for a webhook, whether something of the same vehicle waits before it, and what was given up.
    "create index delivery_due on delivery (webhook_id, lease_until) where state = 'waiting'",
    "create index delivery_order on delivery (pcid, webhook_id, rev, part) where state = 'waiting'",
    "create index delivery_dead on delivery (webhook_id, created_at) where state = 'dead'",
    # What a partner sees of its own, newest first; one event; what is old.
    "create index delivery_created_at on delivery (webhook_id, created_at)",
    "create index delivery_event_id on delivery (event_id)",
    "create index delivery_finished_at on delivery (finished_at)",
    # The row that every change of webhooks locks, and whoever takes events out of the outbox: it has to be there.
    "insert into change_count (topic, number) values ('webhooks', 0) on conflict (topic) do nothing",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("delete from change_count where topic = 'webhooks'")
    op.execute("drop table delivery")
    op.execute("drop table webhook")
