"""ccp doctor: examines the configuration, the machine, the database and the other systems of this pool."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import typer

from ccp.cli.output import ConfigOption, JsonOption, print_json, print_line, print_styled, print_table
from ccp.server import logging
from ccp.server.diagnosis import Diagnosis, Severity, diagnose
from ccp.server.runtime.documents import document
from ccp.server.settings.examination import SettingValue, Source, examine

_MARKS: Final = {"ok": ("ok     ", "green"), "warning": ("warning", "yellow"), "failure": ("FAILURE", "bold red")}
_SKIPPED: Final = ("skipped", "dim")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    config: ConfigOption = None,
    offline: Annotated[bool, typer.Option("--offline", help="Call nothing but the database and this machine.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print every setting and its source.")] = False,
    host: Annotated[str | None, typer.Option(help="As given to `ccp serve`.")] = None,
    port: Annotated[int | None, typer.Option(help="As given to `ccp serve`.")] = None,
    workers: Annotated[int | None, typer.Option(help="As given to `ccp serve`.")] = None,
    database: Annotated[str | None, typer.Option(help="As given to `ccp serve`.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="As given to `ccp serve`.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="As given to `ccp serve`.")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="As given to `ccp serve`.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Examine the pool and say what to do: settings, files, TLS, clock, database, trust, other systems, the server.

    Changes nothing, and also works when the configuration is broken or the database is away. Exit status 0: nothing
    was found. 1: warnings. 2: failures.
    """
    # cryptography warns about unusual certificates, such as some of the system's CAs.
    warnings.filterwarnings("ignore", module=r"ccp\.(x509|server\.diagnosis)\.")
    examination = examine(
        config,
        host=host,
        port=port,
        workers=workers,
        database=database,
        tls_cert=tls_cert and tls_cert.resolve(),
        tls_key=tls_key and tls_key.resolve(),
        tls_client_ca=tls_client_ca and tls_client_ca.resolve(),
    )
    # The findings have what the log would have.
    logging.configure(examination.settings.model_copy(update={"log_level": "error"}))
    found = asyncio.run(diagnose(examination, offline=offline))
    if as_json:
        print_json(found.members())
    else:
        for result in found.results:
            _print_line(_SKIPPED if result.skipped else _MARKS[result.severity.value], result.title)
            for fact in result.facts:
                print_line(f"           {fact}")
            if result.skipped:
                print_line(f"           {result.skipped}")
            for finding in result.findings:
                _print_line(_MARKS[finding.severity.value], f"{finding.code}  {finding.message}", margin="  ")
                print_line(f"           → {finding.action}")
        _print_settings(found.settings if verbose else (each for each in found.settings if _is_given(each)))
        _print_summary(found)
    raise typer.Exit(found.severity.exit_status)


def _print_line(mark: tuple[str, str], text: str, margin: str = "") -> None:
    print_styled((margin, ""), mark, (f"  {text}", ""))


def _is_given(value: SettingValue) -> bool:
    return value.source is not Source.DEFAULT


def _print_settings(values: Iterable[SettingValue]) -> None:
    rows = [[each.name, "" if each.value is None else str(each.value), each.source.value] for each in values]
    print_line("")
    if not rows:
        print_line("Every setting has its default (--verbose prints them).")
        return
    print_table(["setting", "value", "from"], rows)


def _print_summary(found: Diagnosis) -> None:
    counts = [
        f"{number} {severity.value}{'s' if number != 1 else ''}"
        for severity in (Severity.FAILURE, Severity.WARNING)
        if (number := sum(finding.severity is severity for finding in found.findings))
    ]
    print_line("")
    print_line(f"{', '.join(counts) or 'Nothing was found'}; {found.seconds:.1f} s")
    if counts:
        print_line(f"Every code: {document('doctor.md')}")
