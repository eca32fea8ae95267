"""ccp db: the schema."""

from __future__ import annotations

import typer

from ccp import settings
from ccp.cli.show import ConfigOption
from ccp.store import schema

app = typer.Typer(help="Look after the database schema.", no_args_is_help=True)


@app.command()
def upgrade(config: ConfigOption = None) -> None:
    """Bring the database to the schema of this release, creating it if there is none."""
    before, after = schema.upgrade(settings.load(config).database)
    typer.echo(
        f"The schema is {after}." if before == after else f"The schema was {before or 'absent'} and is now {after}."
    )


@app.command()
def status(config: ConfigOption = None) -> None:
    """Print the schema's revision and the one that this release needs."""
    found = schema.revision(settings.load(config).database)
    typer.echo(f"found {found or 'none'}, needed {schema.head()}")
    if not schema.is_enough(found):
        raise typer.Exit(1)
