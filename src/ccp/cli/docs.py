"""ccp docs: the documentation site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccp.cli.output import JsonOption, print_json, print_line

app = typer.Typer(no_args_is_help=True)


@app.callback()
def docs() -> None:
    """Build the documentation site."""


@app.command()
def build(
    directory: Annotated[
        Path, typer.Argument(help="A new or empty directory, or one with an earlier site, which is replaced.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Build the documentation site: static files without references to other servers. Needs the extra `docs`."""
    from ccp.cli.documentation import site

    count = site.build(directory)
    if as_json:
        print_json({"directory": str(directory), "files": count})
    else:
        print_line(f"{count} files in {directory}.")
