"""ccp db: the schema."""

from __future__ import annotations

from typing import Annotated

import typer

from ccp.cli.output import ConfigOption, print_line
from ccp.errors import ConfigurationError
from ccp.server import settings
from ccp.server.storage.engine import citus, schema, schema_version

app = typer.Typer(no_args_is_help=True)


@app.command()
def upgrade(config: ConfigOption = None) -> None:
    """Bring the database to the schema of this release, creating it if there is none."""
    before, after = schema.upgrade(settings.load(config).database)
    print_line(
        f"The schema is {after}." if before == after else f"The schema was {before or 'absent'} and is now {after}."
    )


@app.command()
def status(config: ConfigOption = None) -> None:
    """Print the schema's revision and the one that this release needs."""
    found = schema.revision(settings.load(config).database)
    print_line(f"found {found or 'none'}, needed {schema.head()}")
    if not schema_version.is_enough(found):
        raise typer.Exit(1)


@app.command()
def downgrade(
    to: Annotated[str, typer.Argument(help="Revision to go back to, or 'base' for an empty database.")],
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this it is only told.")] = False,
) -> None:
    """Take migrations back. Whatever is in their tables and columns is lost for good."""
    database = settings.load(config).database
    if not yes:
        found = schema.revision(database)
        raise ConfigurationError(
            f"A downgrade from {found or 'nothing'} to {to} deletes the tables and columns that came after, with all "
            "that is in them, and no server of this release runs on what is left. Stop the servers, make a backup, "
            "and say --yes."
        )
    before, after = schema.downgrade(database, to)
    print_line(f"The schema was {before} and is now {after or 'absent'}.")


@app.command("citus-distribute")
def citus_distribute(config: ConfigOption = None) -> None:
    """Spread the tables over the nodes of a Citus cluster. The database has to have its schema already."""
    for table, how in citus.distribute(settings.load(config).database):
        print_line(f"{table}: {how}")
