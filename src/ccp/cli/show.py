"""How commands speak: tables for people, JSON for programs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, TypeVar

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from ccp import settings
from ccp.store import Store, connect

if TYPE_CHECKING:
    from ccp.app import Assembly
    from ccp.pool import Pool

T = TypeVar("T")

ConfigOption: TypeAlias = Annotated[
    Path | None, typer.Option("--config", "-c", help="Configuration file; else CCP_CONFIG, else ccp.toml.")
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

console = Console()
_ANY_WIDTH: Final = 10_000


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    # What does not fit is folded, never cut: a fingerprint in the list is what `ccp trust remove` takes.
    headers = (Column(column, overflow="fold") for column in columns)
    table = Table(*headers, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(Text, row))  # As it is: rich would read a name in brackets as markup.
    if console.is_terminal:
        console.print(table)
    else:  # One line for each row, however long: this goes to a file or another program.
        Console(width=_ANY_WIDTH).print(table, soft_wrap=True)


def with_pool(config: Path | None, use: Callable[[Pool], Coroutine[Any, Any, T]]) -> T:
    """Build the configured pool, use it, close it."""
    return with_assembly(config, lambda built: use(built.pool))


def with_assembly(config: Path | None, use: Callable[[Assembly], Coroutine[Any, Any, T]]) -> T:
    """As `with_pool`, for a command that needs what the pool rests on too."""
    from ccp import logs  # Here: most commands can do without the server's libraries.
    from ccp.app import assemble

    async def run() -> T:
        effective = settings.load(config)
        logs.configure(effective)
        built = assemble(effective)
        await built.open()
        try:
            return await use(built)
        finally:
            await built.close()

    return asyncio.run(run())


def with_store(config: Path | None, use: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
    """Open the configured store, use it, close it."""

    async def run() -> T:
        store = connect(settings.load(config).database)
        await store.open()
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(run())
