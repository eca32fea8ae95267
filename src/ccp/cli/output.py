"""How commands speak: tables for people, JSON for programs.

The only module of the command line that writes text. What it writes may come from outside (names in certificates,
client ids that callers typed, sentences of peers), so control and bidirectional characters are escaped, and credentials
in URLs are hidden.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, TypeVar

import typer

from ccp.schemas.timestamps import rfc3339
from ccp.server.runtime.redacted_urls import hide_in_text
from ccp.server.runtime.terminal_text import printable, printable_json

# Most commands print plain lines and open no database, so functions import what the others need.
if TYPE_CHECKING:
    from rich.console import Console

    from ccp.server.app import Services
    from ccp.server.pool.operations import Pool
    from ccp.server.storage import Store

T = TypeVar("T")

ConfigOption: TypeAlias = Annotated[
    Path | None, typer.Option("--config", "-c", help="Configuration file; else CCP_CONFIG, else ccp.toml.")
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

_ANY_WIDTH: Final = 10_000


def console() -> Console:
    """The terminal on standard output."""
    from rich.console import Console

    return Console()


def printable_line(text: str) -> str:
    """A text as one line for people."""
    return printable(hide_in_text(text))


def format_time(at: datetime, timespec: str = "milliseconds") -> str:
    """A time as RFC 3339 in UTC. timespec: as `datetime.isoformat` takes it."""
    return rfc3339(at, timespec)


def print_line(text: str, *, err: bool = False) -> None:
    """Print one line. err: to standard error."""
    typer.echo(printable_line(text), err=err)


def print_exactly(text: str) -> None:
    """Print a text of our own making as it is, such as PEM."""
    typer.echo(text, nl=False)


def print_styled(*parts: tuple[str, str]) -> None:
    """Print one line of texts, each with a style of rich's ("" for none). A style is no part of the text."""
    if not (sys.stdout.isatty() or "FORCE_COLOR" in os.environ):
        typer.echo("".join(printable_line(text) for text, _ in parts))
        return
    from rich.text import Text

    console().print(Text.assemble(*((printable_line(text), style) for text, style in parts)), soft_wrap=True)


def print_json(value: object) -> None:
    typer.echo(json_text(value))


def json_text(value: object) -> str:
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
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    # What does not fit is folded, never cut: a fingerprint in the list is what `ccp trust remove` takes.
    headers = (Column(column, overflow="fold") for column in columns)
    table = Table(*headers, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(
            *(Text(printable_line(cell)) for cell in row)
        )  # As it is: rich would read a name in brackets as markup.
    if console().is_terminal:
        console().print(table)
    else:  # One line for each row, however long: this goes to a file or another program.
        Console(width=_ANY_WIDTH).print(table, soft_wrap=True)


def with_pool(config: Path | None, use: Callable[[Pool], Coroutine[Any, Any, T]]) -> T:
    """Build the configured pool, use it, close it."""
    return with_services(config, lambda built: use(built.pool))


def with_services(config: Path | None, use: Callable[[Services], Coroutine[Any, Any, T]]) -> T:
    """As `with_pool`, for a command that also needs the parts that the pool is built from."""
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


def with_store(config: Path | None, use: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
    """Open the configured store, use it, close it."""
    import asyncio

    from ccp.server import settings
    from ccp.server.storage import connect
    from ccp.server.storage.engine.time_limits import COMMANDS

    async def run() -> T:
        store = connect(settings.load(config).database, limits=COMMANDS)
        await store.open()
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(run())
