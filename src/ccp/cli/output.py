"""Output of commands: lines and tables for people, JSON for programs; questions before a change that cannot be undone.

The only module of the command line that writes text. The text may come from outside (names in certificates, client ids
that callers entered, error sentences of peers). Therefore control and bidirectional characters are escaped, and
credentials in URLs are hidden.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, TypeVar

import typer

from ccp.errors import ConfigurationError
from ccp.server.runtime.redacted_urls import hide_in_text
from ccp.server.runtime.terminal_text import printable, printable_json

# Many commands print plain lines and open no database: libraries for anything else are imported in functions.
if TYPE_CHECKING:
    from rich.console import Console

    from ccp.server.app import Services
    from ccp.server.pool.operations import Pool
    from ccp.server.storage import Store

T = TypeVar("T")

SANDBOX: Final = Path(".sandbox") / "ccp.toml"
"""Configuration of the sandbox that `make run` creates in a checkout."""


def _or_sandbox(ctx: typer.Context, given: Path | None) -> Path | None:
    """Take the sandbox below the current folder if nothing else names a pool, and say so.

    Not if the environment names a database: a pool whose other settings are in the environment is not the sandbox.
    """
    if given is not None or ctx.resilient_parsing or os.environ.get("CCP_CONFIG") or Path("ccp.toml").exists():
        return given
    if not SANDBOX.is_file() or any(name.upper() == "CCP_DATABASE" for name in os.environ):
        return None
    typer.echo(f"Using the sandbox: {SANDBOX} (there is no ccp.toml here).", err=True)
    return SANDBOX


ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="Configuration file. Default: CCP_CONFIG, else ccp.toml, else .sandbox/ccp.toml.",
        callback=_or_sandbox,
    ),
]
ServerConfigOption: TypeAlias = Annotated[
    Path | None, typer.Option("--config", "-c", help="Configuration file. Default: CCP_CONFIG, else ccp.toml.")
]
"""For commands that serve: they never take a sandbox that nothing names."""
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
YesOption: TypeAlias = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]

_ANY_WIDTH: Final = 10_000


def console() -> Console:
    """Return rich's console on standard output."""
    from rich.console import Console

    return Console()


def printable_line(text: str) -> str:
    """Escape a text for display in one line."""
    return printable(hide_in_text(text))


def print_line(text: str, *, err: bool = False) -> None:
    """Print one line. err: to standard error."""
    typer.echo(printable_line(text), err=err)


def print_exactly(text: str) -> None:
    """Print a trusted text, such as PEM, without escaping."""
    typer.echo(text, nl=False)


def print_styled(*parts: tuple[str, str]) -> None:
    """Print one line of (text, style) pairs. style: as in rich, "" for none."""
    if not (sys.stdout.isatty() or "FORCE_COLOR" in os.environ):
        typer.echo("".join(printable_line(text) for text, _ in parts))
        return
    from rich.text import Text

    console().print(Text.assemble(*((printable_line(text), style) for text, style in parts)), soft_wrap=True)


def confirm(action: str, *, yes: bool) -> None:
    """Ask on the terminal before a change that cannot be undone.

    action: imperative clause without a full stop, such as "Remove the peer x". yes: value of --yes, which skips the
    question. Raises ConfigurationError without a terminal, typer.Abort if the operator declines.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{action}: this cannot be undone; confirm with --yes.")
    typer.confirm(printable_line(f"{action}?"), abort=True, err=True)


def print_json(value: object) -> None:
    """Print a value as JSON, without credentials in URLs."""
    typer.echo(json_text(value))


def json_text(value: object) -> str:
    """Format a value as JSON, without credentials in URLs."""
    return printable_json(json.dumps(_without_credentials(value), indent=2, ensure_ascii=False))


def _without_credentials(value: object) -> object:
    if isinstance(value, str):
        return hide_in_text(value)
    if isinstance(value, dict):
        return {name: _without_credentials(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_without_credentials(member) for member in value]
    return value


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. On a terminal that is too narrow for it, print each row as a block with one line for each column.

    A cell is never folded or cut, because other commands take ids and fingerprints from it.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    cells = [[printable_line(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, texts)) for texts in zip(columns, *cells, strict=True)]
    if console().is_terminal and sum(widths) + 2 * (len(widths) - 1) > console().width:
        _print_blocks(columns, cells)
        return
    table = Table(*(Column(name, no_wrap=True) for name in columns), box=None, pad_edge=False, header_style="bold")
    for row in cells:
        table.add_row(*map(Text, row))  # Not a str, in which rich would parse brackets as markup.
    (console() if console().is_terminal else Console(width=_ANY_WIDTH)).print(table, soft_wrap=True)


def _print_blocks(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    margin = max(map(len, columns))
    for number, row in enumerate(rows):
        if number:
            typer.echo()
        for name, cell in zip(columns, row, strict=True):
            typer.echo(f"{name:<{margin}}  {cell}".rstrip())


def with_pool(config: Path | None, use: Callable[[Pool], Coroutine[Any, Any, T]]) -> T:
    """Run `use` with the configured pool."""
    return with_services(config, lambda built: use(built.pool))


def with_services(config: Path | None, use: Callable[[Services], Coroutine[Any, Any, T]]) -> T:
    """Run `use` with the configured pool and the services that it is built from."""
    import asyncio

    from ccp.server import logging, settings
    from ccp.server.app import build_services

    async def run() -> T:
        effective = settings.load(config)
        logging.configure(effective)
        built = build_services(effective)
        await built.open()
        try:
            return await use(built)
        finally:
            await built.close()

    return asyncio.run(run())


def with_store(
    config: Path | None, use: Callable[[Store], Coroutine[Any, Any, T]], *, may_lack_keys: bool = False
) -> T:
    """Run `use` with the configured store. may_lack_keys: see `ccp.server.storage.connect`."""
    import asyncio

    from ccp.server import settings
    from ccp.server.storage import connect
    from ccp.server.storage.engine.time_limits import COMMANDS

    async def run() -> T:
        effective = settings.load(config)
        store = connect(
            effective.database,
            limits=COMMANDS,
            secrets_key_file=effective.secrets_key_file,
            may_lack_keys=may_lack_keys,
        )
        await store.open()
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(run())
