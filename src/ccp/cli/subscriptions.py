"""ccp neighbour subscribe, unsubscribe, subscriptions: events of other systems that this pool gets."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from ccp.cli.output import (
    ConfigOption,
    JsonOption,
    print_json,
    print_line,
    print_table,
    with_services,
    with_store,
)
from ccp.errors import ConfigurationError, NotFound
from ccp.schemas.timestamps import rfc3339
from ccp.server import settings
from ccp.server.app import Services
from ccp.server.audit.actor import command_actor
from ccp.server.external.event_service import EventService
from ccp.server.external.service_connection import ServiceConnection
from ccp.server.pool.subscriptions import EventSource, event_source, source_name
from ccp.server.pool.subscriptions import subscribe as subscribe_to
from ccp.server.pool.subscriptions import unsubscribe as unsubscribe_from
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.storage.queries import peers
from ccp.server.storage.queries import subscriptions as queries
from ccp.server.storage.queries.subscriptions import Subscription

_SECRET_VARIABLE = "CCP_SUBSCRIPTION_SECRET"  # noqa: S105  the variable's name

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="rcp, pcp, or the party id of a peer.")]


def register(app: typer.Typer) -> None:
    """Add the commands to their group."""
    app.command()(subscribe)
    app.command()(unsubscribe)
    app.command("subscriptions")(list_subscriptions)


def subscribe(
    name: NameArgument,
    event: Annotated[list[str], typer.Option(help="Event to subscribe to, instead of the usual ones.")] = [],  # noqa: B006
    event_url: Annotated[
        str, typer.Option(help="Address of its webhooks, if it does not follow from the configured one.")
    ] = "",
    renew: Annotated[bool, typer.Option("--renew", help="Replace the webhook there, and with it the secret.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Subscribe to a system's events, or repair the subscription. Running workers follow within seconds.

    The secret that signs the events comes from that system, or from CCP_SUBSCRIPTION_SECRET.
    """
    effective = settings.load(config)
    if effective.base_url is None:
        raise ConfigurationError("base_url is not set: the other system needs a public address for its events.")
    public_url = effective.public_url

    async def run(built: Services) -> Subscription:
        source = await _source(built.store, effective, name, tuple(event), event_url)
        return await subscribe_to(
            built.store,
            _service(built, source),
            source,
            public_url,
            now=datetime.now(UTC),
            actor=command_actor(),
            secret=os.environ.get(_SECRET_VARIABLE) or None,
            renew=renew,
        )

    subscription = with_services(config, run)
    if as_json:
        print_json(_members(subscription))
    else:
        print_line(f"The pool gets {', '.join(subscription.events)} from {name}.")


def unsubscribe(
    name: NameArgument,
    local: Annotated[bool, typer.Option("--local", help="End it at this pool only; do not call the system.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a subscription. Running workers refuse its events within seconds."""

    async def run(built: Services) -> Subscription:
        service = None
        if not local:
            stored = await built.store.read(queries.find(source_name(name)))
            url = stored.url if stored is not None else ""
            service = _service(built, await _source(built.store, settings.load(config), name, (), url))
        return await unsubscribe_from(built.store, service, name, now=datetime.now(UTC), actor=command_actor())

    ended = with_services(config, run)
    if as_json:
        print_json(_members(ended))
    else:
        print_line(f"The subscription to {name} is ended.")


def list_subscriptions(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the systems whose events this pool gets, without secrets."""

    async def read(store: Store) -> list[Subscription]:
        return await store.read(queries.list_all())

    found = with_store(config, read)
    if as_json:
        print_json([_members(each) for each in found])
        return
    print_table(
        ["system", "webhooks at", "webhook", "events", "since"],
        [
            [each.source, each.url, each.endpoint_id or "not accepted", " ".join(each.events), rfc3339(each.created_at)]
            for each in found
        ],
    )


async def _source(store: Store, config: Settings, name: str, events: tuple[str, ...], url: str) -> EventSource:
    try:
        peer = await store.read(peers.get(name))
    except NotFound:
        peer = None
    return event_source(name, config, peer, events, url)


def _service(built: Services, source: EventSource) -> EventService:
    return EventService(ServiceConnection(built.outbound, source.settings, source.label))


def _members(subscription: Subscription) -> dict[str, Any]:
    return {
        "id": subscription.id,
        "system": subscription.source,
        "webhooks_url": subscription.url,
        "webhook": subscription.endpoint_id,
        "events": list(subscription.events),
        "created_at": rfc3339(subscription.created_at),
        "updated_at": rfc3339(subscription.updated_at),
    }
