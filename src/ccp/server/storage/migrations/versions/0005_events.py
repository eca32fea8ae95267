"""Webhook subscriptions of partners, and deliveries of events to them."""

from alembic import op

revision = "0005"
down_revision = "0004"

STATEMENTS = (
    # events, wmis, provider_ids: JSON lists, the subscribed names and the filters; an empty filter means everything
    # that the party owns. secret in clear text, because it signs the messages.
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
    # An event for one webhook and one namespace (part). rev: the event's revision of the vehicle. kind: the name that
    # the subscriber knows. payload: as sent, JSON. created_at: time of the change; queued_at: time since which it
    # waits. lease_until: it is not sent before. state: waiting, delivered or dead.
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
    # Deliveries due for a webhook; earlier deliveries of the same vehicle; dead deliveries.
    "create index delivery_due on delivery (webhook_id, lease_until) where state = 'waiting'",
    "create index delivery_order on delivery (pcid, webhook_id, rev, part) where state = 'waiting'",
    "create index delivery_dead on delivery (webhook_id, created_at) where state = 'dead'",
    # A partner's deliveries, newest first; one event; old deliveries.
    "create index delivery_created_at on delivery (webhook_id, created_at)",
    "create index delivery_event_id on delivery (event_id)",
    "create index delivery_finished_at on delivery (finished_at)",
    # Every change of webhooks and every fan-out locks this row, so it has to exist.
    "insert into change_count (topic, number) values ('webhooks', 0) on conflict (topic) do nothing",
)


def upgrade() -> None:
    """Apply the migration."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Revert the migration."""
    op.execute("delete from change_count where topic = 'webhooks'")
    op.execute("drop table delivery")
    op.execute("drop table webhook")
