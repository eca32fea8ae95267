"""ccp events: deliveries of events to partners' webhooks."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from ccp.cli.output import (
    ConfigOption,
    JsonOption,
    ServerConfigOption,
    YesOption,
    confirm,
    print_json,
    print_line,
    print_table,
    with_store,
)
from ccp.errors import ConfigurationError, NotFound
from ccp.schemas.timestamps import rfc3339
from ccp.server import settings
from ccp.server.audit.actor import command_actor
from ccp.server.domain.actor import Actor
from ccp.server.domain.subscriptions import Webhook
from ccp.server.events import delivery_administration
from ccp.server.events.delivery_administration import DeadDeliveries
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import deliveries
from ccp.server.storage.queries import webhooks as webhook_queries
from ccp.server.storage.queries.deliveries import Backlog, Delivery, DeliveryState

app = typer.Typer(no_args_is_help=True)


class Which(StrEnum):
    """States of deliveries that can be listed."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    DEAD = "dead"
    ALL = "all"


EndpointOption = Annotated[str | None, typer.Option("--endpoint", help="Only this webhook, by its id.")]
EventsArgument = Annotated[list[str] | None, typer.Argument(metavar="[EVENT_ID]...", help="Ids of dead events.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every dead delivery.")]


@app.command("list")
def list_deliveries(
    state: Annotated[Which, typer.Option(help="Deliveries of this state only.")] = Which.DEAD,
    endpoint: EndpointOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number.")] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List deliveries, newest first; by default the dead ones, which were rejected or given up."""
    wanted = None if state is Which.ALL else DeliveryState(state.value)

    def query() -> Query[tuple[Backlog, list[Delivery], dict[str, Webhook]]]:
        backlog = yield from deliveries.backlog()
        found = yield from deliveries.list_page(endpoint, wanted, None, limit)
        return backlog, found, (yield from _webhooks_of(found))

    backlog, found, webhooks = _read(config, query)
    if as_json:
        print_json({"backlog": _backlog(backlog), "deliveries": [_delivery(each, webhooks) for each in found]})
        return
    print_table(
        ["event id", "at", "event", "EMAID", "PCID", "party", "state", "attempts", "last response", "next attempt"],
        [
            [
                *(each.event_id, _time(each.created_at), each.kind, each.emaid, each.pcid),
                *(_party(each, webhooks), each.state.value, str(each.attempts), _last(each)),
                _time(each.due_at) if each.state is DeliveryState.WAITING else "",
            ]
            for each in found
        ],
    )
    oldest = f", the oldest since {_time(backlog.oldest)}" if backlog.oldest is not None else ""
    print_line(f"{backlog.outbox} not dispatched yet, {backlog.waiting} waiting{oldest}, {backlog.dead} dead.")


@app.command()
def show(
    event_id: Annotated[str, typer.Argument(help="The event's id, as in the notification.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the delivery of an event: state, last response, next attempt, payload."""

    def query() -> Query[tuple[list[Delivery], dict[str, Webhook]]]:
        found = yield from deliveries.find(event_id)
        return found, (yield from _webhooks_of(found))

    found, webhooks = _read(config, query)
    if not found:
        raise NotFound(f"There is no delivery of an event {_short(event_id)}.")
    members = {**_delivery(found[0], webhooks), "payload": found[0].payload}
    if as_json:
        print_json(members)
        return
    members.update(members.pop("payload"))
    print_table(["", ""], [[name, "" if value is None else str(value)] for name, value in members.items()])


@app.command()
def replay(
    event_ids: EventsArgument = None,
    endpoint: EndpointOption = None,
    every: AllOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send dead deliveries again, under the same event ids, by which receivers recognise duplicates."""
    which = _selection(event_ids, endpoint, every)

    async def run(store: Store) -> int:
        return await delivery_administration.replay(store, which, Actor(command_actor()), datetime.now(UTC))

    count = with_store(config, run)
    if as_json:
        print_json({"replayed": count})
    else:
        print_line(f"{count} {'delivery waits' if count == 1 else 'deliveries wait'} again.")


@app.command()
def drop(
    event_ids: EventsArgument = None,
    endpoint: EndpointOption = None,
    every: AllOption = False,
    yes: YesOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete dead deliveries; partners are not notified of these events."""
    selection = _selection(event_ids, endpoint, every)
    which = "these" if event_ids else f"the webhook {_short(endpoint)}'s" if endpoint is not None else "all"
    confirm(f"Delete {which} dead deliveries", yes=yes)

    async def run(store: Store) -> int:
        return await delivery_administration.drop(store, selection, Actor(command_actor()), datetime.now(UTC))

    count = with_store(config, run)
    if as_json:
        print_json({"dropped": count})
    else:
        print_line(f"{count} {'delivery' if count == 1 else 'deliveries'} dropped.")


@app.command()
def dispatch(config: ServerConfigOption = None) -> None:
    """Send events until SIGTERM, beside the workers of `ccp serve` or instead of them (event_dispatch = false)."""
    from ccp.server import app as pool  # Imported here, because the other commands do without.
    from ccp.server import logging

    effective = settings.load(config)
    logging.configure(effective)
    print_line(f"opnc-ccp dispatches events (database {effective.redacted()['database']})", err=True)
    asyncio.run(_run_until_signal(pool.run_dispatcher(effective)))


async def _run_until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Run until SIGTERM or SIGINT, which cancels the work; it may complete what is in progress."""
    task = asyncio.create_task(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def _selection(event_ids: list[str] | None, endpoint: str | None, every: bool) -> DeadDeliveries:
    """The deliveries that the options name. Raises ConfigurationError."""
    if bool(event_ids) + (endpoint is not None) + every != 1:
        raise ConfigurationError("Give event ids, or --endpoint, or --all.")
    return DeadDeliveries(tuple(event_ids or ()), endpoint)


def _webhooks_of(found: Iterable[Delivery]) -> Query[dict[str, Webhook]]:
    """The existing webhooks of deliveries, by id."""
    known = {}
    for webhook_id in {delivery.webhook_id for delivery in found}:
        webhook = yield from webhook_queries.find(webhook_id)
        if webhook is not None:
            known[webhook_id] = webhook
    return known


def _read(config: ConfigOption, query: Callable[[], Query[Any]]) -> Any:
    async def read(store: Store) -> Any:
        return await store.read(query())

    return with_store(config, read)


def _backlog(backlog: Backlog) -> dict[str, Any]:
    oldest = None if backlog.oldest is None else _time(backlog.oldest)
    return {"outbox": backlog.outbox, "waiting": backlog.waiting, "dead": backlog.dead, "oldest": oldest}


def _delivery(delivery: Delivery, webhooks: dict[str, Webhook]) -> dict[str, Any]:
    webhook = webhooks.get(delivery.webhook_id)
    waits = delivery.state is DeliveryState.WAITING
    return {
        "event_id": delivery.event_id,
        "event": delivery.kind,
        "at": _time(delivery.created_at),
        "emaid": delivery.emaid,
        "pcid": delivery.pcid,
        "namespace": delivery.namespace,
        "endpoint": delivery.webhook_id,
        "party": _party(delivery, webhooks),
        "url": None if webhook is None else webhook.url,
        "state": delivery.state.value,
        "attempts": delivery.attempts,
        "next_attempt": _time(delivery.due_at) if waits else None,
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
        "finished_at": None if delivery.finished_at is None else _time(delivery.finished_at),
    }


def _party(delivery: Delivery, webhooks: dict[str, Webhook]) -> str:
    webhook = webhooks.get(delivery.webhook_id)
    return "" if webhook is None else webhook.client_id


def _last(delivery: Delivery) -> str:
    return " ".join(str(each) for each in (delivery.last_status, delivery.last_error) if each is not None)


def _time(at: datetime) -> str:
    return rfc3339(at, "milliseconds")


def _short(text: str) -> str:
    """Limit the length of a command line argument in an error sentence."""
    return text[:64]
