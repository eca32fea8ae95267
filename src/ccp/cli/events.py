"""ccp events: what partners' webhooks were told, what waits, and what was given up."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from ccp.cli.output import ConfigOption, JsonOption, format_time, print_json, print_line, print_table, with_store
from ccp.errors import ConfigurationError, NotFound
from ccp.server import settings
from ccp.server.audit.actor import command_actor
from ccp.server.domain.subscriptions import Webhook
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query, long_write
from ccp.server.storage.queries import deliveries
from ccp.server.storage.queries import webhooks as webhook_queries
from ccp.server.storage.queries.audit import Action, Entry, record
from ccp.server.storage.queries.deliveries import Backlog, Delivery, DeliveryState

app = typer.Typer(no_args_is_help=True)


class Which(StrEnum):
    """Deliveries by what became of them."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    DEAD = "dead"
    ALL = "all"


EndpointOption = Annotated[str | None, typer.Option("--endpoint", help="Of this endpoint alone, by its id.")]
EventsArgument = Annotated[list[str] | None, typer.Argument(metavar="[EVENT_ID]...", help="Dead deliveries by event.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every dead one.")]


@app.command("list")
def list_deliveries(
    state: Annotated[Which, typer.Option(help="Which ones.")] = Which.DEAD,
    endpoint: EndpointOption = None,
    limit: Annotated[int, typer.Option(min=1, help="So many, the newest.")] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print deliveries, the newest first: those that were given up, unless told otherwise."""
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
        ["event id", "at", "event", "EMAID", "PCID", "party", "state", "tries", "last answer", "next try"],
        [
            [
                *(each.event_id, format_time(each.created_at), each.kind, each.emaid, each.pcid),
                *(_party(each, webhooks), each.state.value, str(each.attempts), _last(each)),
                format_time(each.due_at) if each.state is DeliveryState.WAITING else "",
            ]
            for each in found
        ],
    )
    oldest = f", the oldest since {format_time(backlog.oldest)}" if backlog.oldest is not None else ""
    print_line(f"{backlog.outbox} not looked at yet, {backlog.waiting} waiting{oldest}, {backlog.dead} dead.")


@app.command()
def show(
    event_id: Annotated[str, typer.Argument(help="The event's id, as its receiver has it.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print everything that is known of an event's delivery."""

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
) -> None:
    """Let dead deliveries be tried again, under the ids that they had; a receiver that has them already can tell."""
    at = datetime.now(UTC)
    count = _change(
        config,
        Action.EVENTS_REPLAYED,
        at,
        event_ids,
        endpoint,
        every,
        lambda **which: deliveries.replay_dead(at, **which),
    )
    print_line(f"{count} {'delivery waits' if count == 1 else 'deliveries wait'} again.")


@app.command()
def drop(
    event_ids: EventsArgument = None,
    endpoint: EndpointOption = None,
    every: AllOption = False,
    config: ConfigOption = None,
) -> None:
    """Forget dead deliveries; nobody is told of these events any more."""
    count = _change(config, Action.EVENTS_DROPPED, datetime.now(UTC), event_ids, endpoint, every, deliveries.drop_dead)
    print_line(f"{count} {'delivery' if count == 1 else 'deliveries'} dropped.")


@app.command()
def dispatch(config: ConfigOption = None) -> None:
    """Send events until SIGTERM, beside the workers of `ccp serve` or in their place (event_dispatch = false)."""
    from ccp.server import app as pool  # Here: most commands can do without the server's libraries.
    from ccp.server import logging

    effective = settings.load(config)
    logging.configure(effective)
    print_line(f"opnc-ccp sends events (database {effective.redacted()['database']})", err=True)
    asyncio.run(_until_told_to_stop(pool.run_dispatcher(effective)))


async def _until_told_to_stop(work: Coroutine[Any, Any, None]) -> None:
    """What is on its way then comes back first, for a moment."""
    task = asyncio.create_task(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def _change(
    config: ConfigOption,
    action: Action,
    at: datetime,
    event_ids: list[str] | None,
    endpoint: str | None,
    every: bool,
    do: Callable[..., Query[int]],
) -> int:
    """Replay or drop, and record it, in one transaction. Returns how many. Raises ConfigurationError, NotFound."""
    if bool(event_ids) + (endpoint is not None) + every != 1:
        raise ConfigurationError("Give event ids, or --endpoint, or --all.")

    @long_write
    def change() -> Query[int]:
        if event_ids:
            named = yield from _dead(event_ids)
            total = 0
            for delivery in named:
                total += yield from do(event_id=delivery.event_id)
            about: dict[str, Any] = {"events": [delivery.event_id for delivery in named]}
        elif endpoint is not None:
            if (yield from webhook_queries.find(endpoint)) is None:
                raise NotFound(f"There is no endpoint {_short(endpoint)}.")
            total = yield from do(webhook_id=endpoint)
            about = {"endpoint": endpoint}
        else:
            total = yield from do()
            about = {"endpoint": "all"}
        yield from record(Entry(at, command_actor(), action, {**about, "deliveries": total}))
        return total

    async def write(store: Store) -> int:
        return await store.write(change())

    return with_store(config, write)


def _dead(event_ids: Iterable[str]) -> Query[list[Delivery]]:
    """The deliveries that are meant, in the order in which they are locked. Raises NotFound."""
    named = []
    for event_id in dict.fromkeys(event_ids):
        found = yield from deliveries.find(event_id)
        if not found or found[0].state is not DeliveryState.DEAD:
            standing = f"is {found[0].state.value}" if found else "is not known"
            raise NotFound(f"The event {_short(event_id)} {standing}; only dead ones are replayed or dropped.")
        named.append(found[0])
    return sorted(named, key=lambda each: each.key)


def _webhooks_of(found: Iterable[Delivery]) -> Query[dict[str, Webhook]]:
    """The webhooks of deliveries, as far as they are still there, by their ids."""
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
    oldest = None if backlog.oldest is None else format_time(backlog.oldest)
    return {"outbox": backlog.outbox, "waiting": backlog.waiting, "dead": backlog.dead, "oldest": oldest}


def _delivery(delivery: Delivery, webhooks: dict[str, Webhook]) -> dict[str, Any]:
    webhook = webhooks.get(delivery.webhook_id)
    waits = delivery.state is DeliveryState.WAITING
    return {
        "event_id": delivery.event_id,
        "event": delivery.kind,
        "at": format_time(delivery.created_at),
        "emaid": delivery.emaid,
        "pcid": delivery.pcid,
        "namespace": delivery.namespace,
        "endpoint": delivery.webhook_id,
        "party": _party(delivery, webhooks),
        "url": None if webhook is None else webhook.url,
        "state": delivery.state.value,
        "attempts": delivery.attempts,
        "next_attempt": format_time(delivery.due_at) if waits else None,
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
        "finished_at": None if delivery.finished_at is None else format_time(delivery.finished_at),
    }


def _party(delivery: Delivery, webhooks: dict[str, Webhook]) -> str:
    webhook = webhooks.get(delivery.webhook_id)
    return "" if webhook is None else webhook.client_id


def _last(delivery: Delivery) -> str:
    return " ".join(str(each) for each in (delivery.last_status, delivery.last_error) if each is not None)


def _short(text: str) -> str:
    """What was typed, as far as a sentence has room for it."""
    return text[:64]
