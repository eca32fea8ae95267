"""ccp import and ccp export."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ccp.cli.output import ConfigOption, JsonOption, print_json, print_line, with_store
from ccp.errors import ConfigurationError
from ccp.ids import WMI, Namespace, ProviderId
from ccp.server import settings
from ccp.server.audit.actor import command_actor
from ccp.server.domain.parties import Caller, Party, PartyRole
from ccp.server.storage import Store
from ccp.server.storage.queries import parties

if TYPE_CHECKING:
    from collections.abc import Callable

    from ccp.server.bulk.importer import ImportProgress

_LEAST_LEVEL = "error"  # Of the log while a bar is drawn and lines are refused by the thousand.


def register(app: typer.Typer) -> None:
    app.command("import")(import_contracts)
    app.command("export")(export_contracts)


def import_contracts(
    source: Annotated[
        str, typer.Argument(help="JSON Lines as PUT takes them, plain or gzip: a file, a folder of them, or -.")
    ],
    refused: Annotated[
        Path | None, typer.Option(help="File for refused lines: line number, EMAID, reasons (JSON Lines).")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="File that notes how far it is; if not given, one beside the database, and none for -."),
    ] = None,
    publisher: Annotated[
        str | None, typer.Option("--as", help="Client id of the party that publishes; it may publish what it may.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Processes that check; one a core.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish signed contracts in bulk, with the same checks as PUT.

    Interrupted or killed, the same command goes on where it was. Lines that are stored already just as they are change
    nothing. Exit status: 0, 1 when a line was refused, 130 when it was interrupted.
    """
    from ccp.server import logging  # Here: most commands can do without the server's libraries.
    from ccp.server.bulk import importer
    from ccp.server.bulk.checkpoint import default_path
    from ccp.server.bulk.lines import InputSource

    effective = settings.load(config)
    effective = effective.model_copy(update={"log_level": _LEAST_LEVEL})
    logging.configure(effective)
    if checkpoint is None and source != "-":
        checkpoint = default_path(source, effective.database)
    found = InputSource.of(source, without=refused)
    caller = Caller(_publisher(config, publisher))
    began = time.monotonic()
    with _bar(found.size) as told:
        plan = importer.ImportPlan(found, caller, workers or _cores(), checkpoint, refused, told)
        state = asyncio.run(importer.run(effective, plan))
    _tell(state, time.monotonic() - began, checkpoint, as_json)
    if state.interrupted:
        raise typer.Exit(130)
    if state.counts[importer.REFUSED]:
        raise typer.Exit(1)


def _publisher(config: Path | None, client_id: str | None) -> Party:
    """The party that publishes: a registered one, or the operator, who may for all providers."""
    if client_id is None:
        name = command_actor()
        return Party(name, name, frozenset({PartyRole.CPS}), all_providers=True)

    async def find(store: Store) -> Party | None:
        return await store.read(parties.find(client_id))

    party = with_store(config, find)
    if party is None or not party.enabled:
        raise ConfigurationError(f"There is no enabled party with the client id {client_id}.")
    return party


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _bar(octets: int | None) -> Iterator[Callable[[ImportProgress], None]]:
    """A progress bar on standard error, nothing where that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda state: None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[told]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    began = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("import", total=octets, told="")

        def told(state: ImportProgress) -> None:
            rate = state.lines_done / max(time.monotonic() - began, 1e-3)
            sentence = f"{sum(state.counts.values()):,} lines, {state.counts['refused']:,} refused, {rate:,.0f}/s"
            progress.update(task, completed=state.position, told=sentence)

        yield told


def _tell(state: ImportProgress, seconds: float, checkpoint: Path | None, as_json: bool) -> None:
    from ccp.server.bulk.importer import OUTCOMES

    counts = {outcome: state.counts[outcome] for outcome in OUTCOMES}
    rate = state.lines_done / max(seconds, 1e-3)
    if as_json:
        shown: dict[str, Any] = {
            "lines": sum(counts.values()), **counts, "warnings": dict(state.warnings),
            "seconds": round(seconds, 3), "lines_a_second": round(rate, 1), "interrupted": state.interrupted,
        }  # fmt: skip
        print_json(shown)
        return
    if state.resumed_after:
        print_line(f"Went on behind line {state.resumed_after:,}, where an earlier run had stopped.")
    parts = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
    print_line(f"{sum(counts.values()):,} lines: {parts}. {rate:,.0f} lines a second in {seconds:,.1f} s.")
    for sentence, count in state.warnings.most_common():
        print_line(f"Warning ({count:,} times): {sentence}")
    if state.interrupted:
        on = "the same command goes on from here" if checkpoint else "lines that are stored will be left as they are"
        print_line(f"Interrupted; everything counted is stored or refused for good, {on}.")


def export_contracts(
    target: Annotated[str, typer.Argument(help="File (compressed where its name ends in .gz), or - .")] = "-",
    provider_id: Annotated[list[str], typer.Option(help="Only contracts of this provider; repeatable.")] = [],  # noqa: B006
    wmi: Annotated[list[str], typer.Option(help="Only vehicles of this maker; repeatable.")] = [],  # noqa: B006
    namespace: Annotated[list[str], typer.Option(help="Only messages of this namespace; repeatable.")] = [],  # noqa: B006
    config: ConfigOption = None,
) -> None:
    """Write every variant of every contract as JSON Lines that PUT and `ccp import` accept.

    Each vehicle is seen as it is at one moment, the whole file is not: for a copy of one moment restore a backup and
    export that.
    """
    from ccp.server.bulk import exporter

    wanted = exporter.ExportFilter(
        frozenset(map(ProviderId.parse, provider_id)),
        frozenset(map(WMI.parse, wmi)),
        frozenset(map(Namespace.parse, namespace)),
    )

    async def run(store: Store) -> int:
        return await exporter.export(store, target, wanted)

    count = with_store(config, run)
    print_line(f"{count:,} lines.", err=True)
