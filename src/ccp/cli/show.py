"""How commands speak: tables for people, JSON for programs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ccp import settings
from ccp.store import Store, connect

T = TypeVar("T")

ConfigOption: TypeAlias = Annotated[
    Path | None, typer.Option("--config", "-c", help="Configuration file; else CCP_CONFIG, else ccp.toml.")
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

console = Console()


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(Text, row))  # As it is: rich would read a name in brackets as markup.
    if not console.is_terminal:
        console.width = max(console.width, console.measure(table).maximum)  # What is piped is not cut to any width.
    console.print(table)


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
