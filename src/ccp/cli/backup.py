"""ccp backup and ccp restore: copies of a SQLite database."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from ccp import settings
from ccp.cli.show import ConfigOption
from ccp.store import backup as copies
from ccp.store import revisions, schema


def register(app: typer.Typer) -> None:
    app.command()(backup)
    app.command()(restore)


def backup(
    file: Annotated[Path, typer.Argument(help="Where the copy goes; a file that is there is replaced in the end.")],
    config: ConfigOption = None,
) -> None:
    """Copy the database as it is at this moment, while the pool runs. The copy is checked and on disk afterwards.

    Keys that sign tokens and hashes of secrets are in it: it is readable by its owner alone, and has to stay so.
    """
    done = copies.backup(settings.load(config).database, file)
    typer.echo(f"{file}: {done.contracts:,} variants, {done.octets:,} octets, schema {done.revision}, checked.")


def restore(
    file: Annotated[Path, typer.Argument(help="What `ccp backup` wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Put a database that is there aside.")] = False,
    config: ConfigOption = None,
) -> None:
    """Make a backup the database. The pool has to be stopped; the database that was there is kept beside it."""
    url = settings.load(config).database
    done, aside = copies.restore(url, file, datetime.now(UTC), replace=replace)
    typer.echo(f"{schema.sqlite_file(url)}: {done.contracts:,} variants, schema {done.revision}, checked.")
    if aside is not None:
        typer.echo(f"The database that was there is {aside}.")
    if not revisions.is_enough(done.revision):
        typer.echo(f"This release needs schema {schema.head()}: run 'ccp db upgrade' next.")
