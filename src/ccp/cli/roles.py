"""ccp roles: who may do what."""

from __future__ import annotations

import typer

from ccp.cli.output import JsonOption, print_json, print_table
from ccp.server.domain.authorization import role_table


def register(app: typer.Typer) -> None:
    app.command()(roles)


def roles(as_json: JsonOption = False) -> None:
    """Print the role table: what each role may do, and on which condition. Whatever is not in it is refused."""
    rows = list(role_table())
    if as_json:
        names = ("operation", "role", "condition")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    print_table(["operation", "role", "for"], rows)
