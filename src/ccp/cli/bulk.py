"""ccp import and ccp export: contracts in bulk, as JSON Lines."""

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
from ccp.server.domain.parties import Caller, Party, PartyRole, check_owner_id
from ccp.server.storage import Store
from ccp.server.storage.queries import parties

if TYPE_CHECKING:
    from collections.abc import Callable

    from ccp.server.bulk.importer import ImportProgress

_LOG_LEVEL = "error"
"""During an import, which draws a progress bar and may refuse thousands of lines."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
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
        typer.Option(help="Checkpoint file. Default: beside the database; none for -."),
    ] = None,
    publisher: Annotated[
        str | None,
        typer.Option("--as", help="Client id of the publishing party. Default: the operator."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Checking processes. Default: one per core.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish signed contracts in bulk, with the same checks as PUT.

    After an interruption, the same command continues from its checkpoint. Lines that are already stored identically
    change nothing. Exit status: 0; 1 if a line was refused; 130 if the import was interrupted.
    """
    from ccp.server import logging  # Imported here, because an export does without.
    from ccp.server.bulk import importer
    from ccp.server.bulk.checkpoint import default_path
    from ccp.server.bulk.lines import InputSource

    effective = settings.load(config)
    effective = effective.model_copy(update={"log_level": _LOG_LEVEL})
    logging.configure(effective)
    if checkpoint is None and source != "-":
        checkpoint = default_path(source, effective.database)
    found = InputSource.of(source, without=refused)
    caller = Caller(_publisher(config, publisher))
    began = time.monotonic()
    with _bar(found.size) as report:
        plan = importer.ImportPlan(found, caller, workers or _cores(), checkpoint, refused, report)
        state = asyncio.run(importer.run(effective, plan))
    _print_result(state, time.monotonic() - began, checkpoint, as_json)
    if state.interrupted:
        raise typer.Exit(130)
    if state.counts[importer.REFUSED]:
        raise typer.Exit(1)


def _publisher(config: Path | None, client_id: str | None) -> Party:
    """The publishing party: a registered one, or the operator, who may publish for all providers."""
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
def _bar(total_bytes: int | None) -> Iterator[Callable[[ImportProgress], None]]:
    """A progress bar on standard error; none if that is not a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda state: None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[summary]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    began = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("import", total=total_bytes, summary="")

        def report(state: ImportProgress) -> None:
            rate = state.lines_done / max(time.monotonic() - began, 1e-3)
            summary = f"{sum(state.counts.values()):,} lines, {state.counts['refused']:,} refused, {rate:,.0f}/s"
            progress.update(task, completed=state.position, summary=summary)

        yield report


def _print_result(state: ImportProgress, elapsed: float, checkpoint: Path | None, as_json: bool) -> None:
    from ccp.server.bulk.importer import OUTCOMES

    counts = {outcome: state.counts[outcome] for outcome in OUTCOMES}
    rate = state.lines_done / max(elapsed, 1e-3)
    if as_json:
        shown: dict[str, Any] = {
            "lines": sum(counts.values()), **counts, "warnings": dict(state.warnings),
            "seconds": round(elapsed, 3), "lines_a_second": round(rate, 1), "interrupted": state.interrupted,
        }  # fmt: skip
        print_json(shown)
        return
    if state.resumed_after:
        print_line(f"Continued after line {state.resumed_after:,}, where an earlier run had stopped.")
    parts = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
    print_line(f"{sum(counts.values()):,} lines: {parts}. {rate:,.0f} lines a second in {elapsed:,.1f} s.")
    for sentence, count in state.warnings.most_common():
        print_line(f"Warning ({count:,} times): {sentence}")
    if state.interrupted:
        on = "the same command continues from here" if checkpoint else "lines that are stored will count as unchanged"
        print_line(f"Interrupted; every counted line is stored or refused, {on}.")


def export_contracts(
    target: Annotated[str, typer.Argument(help="File, compressed if its name ends in .gz, or -.")] = "-",
    provider_id: Annotated[list[str], typer.Option(help="Only contracts of this provider; repeatable.")] = [],  # noqa: B006
    wmi: Annotated[list[str], typer.Option(help="Only vehicles of this maker; repeatable.")] = [],  # noqa: B006
    namespace: Annotated[list[str], typer.Option(help="Only messages of this namespace; repeatable.")] = [],  # noqa: B006
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write every variant of every contract as JSON Lines that PUT and `ccp import` accept.

    The export is consistent for each vehicle, not as a whole: for a consistent export restore a backup and export that.
    """
    from ccp.server.bulk import exporter

    if as_json and target == "-":
        raise ConfigurationError("--json needs a file; without one, standard output is the export.")
    wanted = exporter.ExportFilter(
        _providers(provider_id),
        frozenset(map(WMI.parse, wmi)),
        frozenset(map(Namespace.parse, namespace)),
    )

    async def run(store: Store) -> int:
        return await exporter.export(store, target, wanted)

    count = with_store(config, run)
    if as_json:
        print_json({"file": target, "lines": count})
    else:
        print_line(f"{count:,} lines.", err=True)


def _providers(texts: list[str]) -> frozenset[ProviderId]:
    found = frozenset(ProviderId.parse(text, "provider-id") for text in texts)
    for parsed in found:
        check_owner_id(parsed, "provider-id")
    return found
