"""ccp webhook: partners' webhooks. Partners register, edit and test them by the API."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccp.cli.output import (
    ConfigOption,
    JsonOption,
    YesOption,
    confirm,
    print_json,
    print_line,
    print_table,
    with_services,
    with_store,
)
from ccp.errors import ConfigurationError
from ccp.schemas.timestamps import rfc3339
from ccp.server import settings
from ccp.server.audit.actor import command_actor
from ccp.server.domain.actor import Actor
from ccp.server.domain.subscriptions import SignatureFormat, Subscriber, Webhook
from ccp.server.events import webhook_administration
from ccp.server.events.ping import Pinger, PingResult
from ccp.server.events.sending import WebhookSender
from ccp.server.runtime.clock import utc_now
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import deliveries, parties, subscribers
from ccp.server.storage.queries.deliveries import Backlog

if TYPE_CHECKING:
    from ccp.server.app import Services

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
        "signature_format": webhook.signature_format.value,
        "previous_secrets_valid_until": _until(webhook, datetime.now(UTC)),
        "description": webhook.description,
        "created_at": rfc3339(webhook.created_at, "milliseconds"),
        "updated_at": rfc3339(webhook.updated_at, "milliseconds"),
    }
    if as_json:
        print_json(members)
        return
    for name, value in members.items():
        text = " ".join(value) if isinstance(value, list) else "" if value is None else str(value)
        print_line(f"{name:<28}  {text}".rstrip())


@app.command()
def enable(webhook_id: WebhookArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Enable a webhook; its waiting events are sent again."""
    _set_enabled(config, webhook_id, True, as_json)


@app.command()
def disable(webhook_id: WebhookArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Disable a webhook; its waiting events are kept until event_max_age. The partner can enable it again."""
    _set_enabled(config, webhook_id, False, as_json)


@app.command("set-signature-format")
def set_signature_format(
    webhook_id: WebhookArgument,
    signature_format: Annotated[
        SignatureFormat,
        typer.Argument(metavar="FORMAT", help="sha256: `sha256=` and hexadecimal. bare: hexadecimal alone."),
    ],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set the form of a webhook's signatures in X-Operator-Signature. The partner can do it too."""

    async def change(store: Store) -> Webhook:
        return await webhook_administration.set_signature_format(
            store, webhook_id, signature_format, Actor(command_actor()), datetime.now(UTC)
        )

    webhook = with_store(config, change)
    if as_json:
        print_json({"id": webhook.id, "signature_format": webhook.signature_format.value})
        return
    print_line(f"The webhook {webhook.id} gets signatures of the form {webhook.signature_format.value}.")


@app.command("rotate-secret")
def rotate_secret(
    webhook_id: WebhookArgument,
    overlap: Annotated[
        int | None,
        typer.Option(
            help="Seconds for which the previous secret stays valid. Default and maximum: event_secret_overlap."
        ),
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="End every older secret at once.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace the secret of a webhook and print the new one; it is shown only once.

    Until the previous secret ends, requests are signed with both. Tell the partner
    the new secret over a safe channel; the partner can rotate it without you.
    """
    if now and overlap is not None:
        raise ConfigurationError("--now ends every older secret; it excludes --overlap.")
    max_overlap = settings.load(config).event_secret_overlap
    at = datetime.now(UTC)

    async def change(store: Store) -> Webhook:
        return await webhook_administration.rotate_secret(
            store, webhook_id, 0 if now else overlap, max_overlap, Actor(command_actor()), at
        )

    webhook = with_store(config, change)
    until = _until(webhook, at)
    if as_json:
        print_json({"id": webhook.id, "secret": webhook.secret, "previous_secrets_valid_until": until})
        return
    print_line(f"webhook  {webhook.id}")
    print_line(f"secret   {webhook.secret}")
    print_line("The secret is not shown again.")
    print_line(f"The previous one is valid until {until[0]}." if until else "No older secret is valid.")


@app.command()
def ping(webhook_id: WebhookArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Send a test event to a webhook now and show what came back; exit status 1 if it was not delivered."""

    async def send(built: Services) -> PingResult:
        timeout = settings.load(config).event_timeout
        pinger = Pinger(WebhookSender(built.store, built.outbound, utc_now, timeout))
        return await webhook_administration.ping(built.store, pinger, webhook_id, Actor(command_actor()), utc_now())

    result = with_services(config, send)
    attempt = result.attempt
    if as_json:
        print_json(
            {
                "event_id": result.event_id,
                "delivered": attempt.accepted,
                "status": attempt.status,
                "duration_ms": attempt.ms,
                "error": attempt.error,
                "previous_secret": attempt.accepted and attempt.previous_secret,
            }
        )
    else:
        outcome = f"The receiver answered {attempt.status}." if attempt.error is None else attempt.error
        print_line(f"{outcome} It took {attempt.ms:.0f} ms.")
        if attempt.accepted and attempt.previous_secret:
            print_line("The receiver accepts the previous secret only.")
    if not attempt.accepted:
        raise typer.Exit(1)


@app.command()
def remove(
    webhook_id: WebhookArgument, yes: YesOption = False, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Remove a webhook with its events, the waiting ones too. The partner has to register it anew."""
    confirm(f"Remove the webhook {webhook_id} and its events", yes=yes)

    async def change(store: Store) -> Webhook:
        return await webhook_administration.remove(store, webhook_id, Actor(command_actor()), datetime.now(UTC))

    webhook = with_store(config, change)
    if as_json:
        print_json({"id": webhook.id, "removed": True})
        return
    print_line(f"The webhook {webhook.id} is removed.")


def _set_enabled(config: ConfigOption, webhook_id: str, enabled: bool, as_json: bool) -> None:
    async def change(store: Store) -> Webhook:
        return await webhook_administration.set_enabled(
            store, webhook_id, enabled, Actor(command_actor()), datetime.now(UTC)
        )

    webhook = with_store(config, change)
    if as_json:
        print_json({"id": webhook.id, "enabled": webhook.enabled})
        return
    print_line(f"The webhook {webhook.id} is {'enabled' if webhook.enabled else 'disabled'}.")


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


def _until(webhook: Webhook, now: datetime) -> list[str]:
    return [rfc3339(each.valid_until) for each in webhook.live_previous_secrets(now)]


def _since(backlog: Backlog | None) -> str | None:
    return rfc3339(backlog.oldest, "milliseconds") if backlog and backlog.oldest else None


def _state(webhook: Webhook, party_enabled: bool) -> str:
    if not party_enabled:
        return "party disabled"
    state = "enabled" if webhook.enabled else "disabled"
    return state if webhook.damage is None else f"{state}, damaged secret"
