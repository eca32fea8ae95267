"""ccp webhook: partners' webhooks."""

from __future__ import annotations

import typer

from ccp.cli.output import ConfigOption, JsonOption, format_time, print_json, print_table, with_store
from ccp.server.domain.subscriptions import Subscriber, Webhook
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import deliveries, subscribers
from ccp.server.storage.queries.deliveries import Backlog

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_webhooks(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the webhooks of all parties, and what waits for each; secrets are left out."""

    def query() -> Query[list[tuple[Webhook, bool, Backlog | None]]]:
        backlogs = yield from deliveries.backlog_by_webhook()
        registered: list[Subscriber] = []
        while page := (yield from subscribers.list_page(registered[-1].webhook.id if registered else "", 1000)):
            registered += page
        registered.sort(key=lambda each: (each.webhook.created_at, each.webhook.id))
        return [(each.webhook, each.party.enabled, backlogs.get(each.webhook.id)) for each in registered]

    async def read(store: Store) -> list[tuple[Webhook, bool, Backlog | None]]:
        return await store.read(query())

    found = with_store(config, read)
    if as_json:
        print_json(
            [
                {
                    "id": webhook.id,
                    "party": webhook.client_id,
                    "url": webhook.url,
                    "events": list(webhook.events),
                    "wmis": list(webhook.wmis),
                    "provider_ids": list(webhook.provider_ids),
                    "enabled": webhook.enabled,
                    "party_enabled": able,
                    "waiting": backlog.waiting if backlog else 0,
                    "dead": backlog.dead if backlog else 0,
                    "oldest": format_time(backlog.oldest) if backlog and backlog.oldest else None,
                }
                for webhook, able, backlog in found
            ]
        )
        return
    print_table(
        ["endpoint", "party", "address", "state", "waiting", "since", "dead"],
        [
            [
                *(webhook.id, webhook.client_id, webhook.url, _standing(webhook, able)),
                str(backlog.waiting) if backlog else "0",
                format_time(backlog.oldest) if backlog and backlog.oldest else "",
                str(backlog.dead) if backlog else "0",
            ]
            for webhook, able, backlog in found
        ],
    )


def _standing(webhook: Webhook, able: bool) -> str:
    if not able:
        return "party disabled"
    return "enabled" if webhook.enabled else "disabled"
