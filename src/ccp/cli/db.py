"""ccp db: the database schema."""

from __future__ import annotations

from typing import Annotated

import typer

from ccp.cli.output import ConfigOption, JsonOption, YesOption, confirm, print_json, print_line
from ccp.server import settings
from ccp.server.storage.engine import citus, schema, schema_version

app = typer.Typer(no_args_is_help=True)


@app.command()
def upgrade(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Upgrade the database to the schema of this release; create it if there is none."""
    before, after = schema.upgrade(settings.load(config).database)
    if as_json:
        print_json({"before": before, "after": after})
        return
    print_line(
        f"The schema is {after}." if before == after else f"The schema was {before or 'absent'} and is now {after}."
    )


@app.command()
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the schema's revision and the one that this release needs. Exit status 1 if it has to be upgraded."""
    found = schema.revision(settings.load(config).database)
    if as_json:
        print_json({"found": found, "needed": schema.head(), "sufficient": schema_version.is_enough(found)})
    else:
        print_line(f"found {found or 'none'}, needed {schema.head()}")
    if not schema_version.is_enough(found):
        raise typer.Exit(1)


@app.command()
def downgrade(
    to: Annotated[str, typer.Argument(help="Revision to go back to, or 'base' for an empty database.")],
    yes: YesOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revert migrations and delete the tables and columns that they added, with all their data.

    No server of this release runs on the result. Stop the servers and make a backup first.
    """
    database = settings.load(config).database
    found = schema.revision(database)
    confirm(
        f"Downgrade the schema from {found or 'nothing'} to {to}, and delete the tables and columns that came after, "
        "with all their data",
        yes=yes,
    )
    before, after = schema.downgrade(database, to)
    if as_json:
        print_json({"before": before, "after": after})
    else:
        print_line(f"The schema was {before} and is now {after or 'absent'}.")


@app.command("citus-distribute")
def citus_distribute(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Distribute the tables over the nodes of a Citus cluster. The database must have its schema already."""
    done = citus.distribute(settings.load(config).database)
    if as_json:
        print_json([{"table": table, "distribution": how} for table, how in done])
        return
    for table, how in done:
        print_line(f"{table}: {how}")
