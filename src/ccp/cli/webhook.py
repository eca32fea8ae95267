"""ccp webhook: partners' webhooks. Partners register and edit them by the API."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from ccp.cli.output import (
    ConfigOption,
    JsonOption,
    YesOption,
    confirm,
    print_json,
    print_line,
    print_table,
    with_store,
)
from ccp.schemas.timestamps import rfc3339
from ccp.server.audit.actor import command_actor
from ccp.server.domain.subscriptions import Subscriber, Webhook
from ccp.server.events import webhook_administration
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import deliveries, parties, subscribers
from ccp.server.storage.queries.deliveries import Backlog

app = typer.Typer(no_args_is_help=True)

_PAGE_SIZE = 1000

WebhookArgument = Annotated[str, typer.Argument(metavar="ID", help="The webhook's id.")]


@app.command("list")
def list_webhooks(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the webhooks of all parties with their backlog, without secrets."""

    def query() -> Query[list[tuple[Webhook, bool, Backlog | None]]]:
        backlogs = yield from deliveries.backlog_by_webhook()
        found: list[Subscriber] = []
        while page := (yield from subscribers.list_page(found[-1].webhook.id if found else "", _PAGE_SIZE)):
            found += page
        found.sort(key=lambda item: (item.webhook.created_at, item.webhook.id))
        return [(item.webhook, item.party.enabled, backlogs.get(item.webhook.id)) for item in found]

    async def read(store: Store) -> list[tuple[Webhook, bool, Backlog | None]]:
        return await store.read(query())

    found = with_store(config, read)
    if as_json:
        print_json([_members(webhook, party_enabled, backlog) for webhook, party_enabled, backlog in found])
        return
    print_table(
        ["webhook", "party", "address", "state", "waiting", "since", "dead"],
        [
            [
                *(webhook.id, webhook.client_id, webhook.url, _state(webhook, party_enabled)),
                str(backlog.waiting) if backlog else "0",
                _since(backlog) or "",
                str(backlog.dead) if backlog else "0",
            ]
            for webhook, party_enabled, backlog in found
        ],
    )


@app.command()
def show(webhook_id: WebhookArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show a webhook with its subscription and its backlog, without its secret."""

    async def read(store: Store) -> tuple[Webhook, bool, Backlog | None]:
        webhook = await webhook_administration.find(store, webhook_id)
        party = await store.read(parties.find(webhook.client_id))
        backlogs = await store.read(deliveries.backlog_by_webhook())
        return webhook, party is not None and party.enabled, backlogs.get(webhook.id)

    webhook, party_enabled, backlog = with_store(config, read)
    members = {
        **_members(webhook, party_enabled, backlog),
        "description": webhook.description,
        "created_at": rfc3339(webhook.created_at, "milliseconds"),
        "updated_at": rfc3339(webhook.updated_at, "milliseconds"),
    }
    if as_json:
        print_json(members)
        return
    for name, value in members.items():
        text = " ".join(value) if isinstance(value, list) else "" if value is None else str(value)
        print_line(f"{name:<13}  {text}".rstrip())


@app.command()
def enable(webhook_id: WebhookArgument, config: ConfigOption = None) -> None:
    """Enable a webhook; its waiting events are sent again."""
    _set_enabled(config, webhook_id, True)


@app.command()
def disable(webhook_id: WebhookArgument, config: ConfigOption = None) -> None:
    """Disable a webhook; its waiting events are kept until event_max_age. The partner can enable it again."""
    _set_enabled(config, webhook_id, False)


@app.command()
def remove(webhook_id: WebhookArgument, yes: YesOption = False, config: ConfigOption = None) -> None:
    """Remove a webhook with its events, the waiting ones too. The partner has to register it anew."""
    confirm(f"Remove the webhook {webhook_id} and its events", yes=yes)

    async def change(store: Store) -> Webhook:
        return await webhook_administration.remove(store, webhook_id, command_actor(), datetime.now(UTC))

    print_line(f"The webhook {with_store(config, change).id} is removed.")


def _set_enabled(config: ConfigOption, webhook_id: str, enabled: bool) -> None:
    async def change(store: Store) -> Webhook:
        return await webhook_administration.set_enabled(store, webhook_id, enabled, command_actor(), datetime.now(UTC))

    print_line(f"The webhook {with_store(config, change).id} is {'enabled' if enabled else 'disabled'}.")


def _members(webhook: Webhook, party_enabled: bool, backlog: Backlog | None) -> dict[str, Any]:
    return {
        "id": webhook.id,
        "party": webhook.client_id,
        "url": webhook.url,
        "events": list(webhook.events),
        "wmis": list(webhook.wmis),
        "provider_ids": list(webhook.provider_ids),
        "enabled": webhook.enabled,
        "party_enabled": party_enabled,
        "waiting": backlog.waiting if backlog else 0,
        "dead": backlog.dead if backlog else 0,
        "oldest": _since(backlog),
    }


def _since(backlog: Backlog | None) -> str | None:
    return rfc3339(backlog.oldest, "milliseconds") if backlog and backlog.oldest else None


def _state(webhook: Webhook, party_enabled: bool) -> str:
    if not party_enabled:
        return "party disabled"
    return "enabled" if webhook.enabled else "disabled"
