"""The command line: one module for each group of commands, imported when one of them is called (`commands`)."""

from __future__ import annotations

import sys
from typing import Final

import typer

from ccp import __version__
from ccp.cli.commands import LazyCommands
from ccp.cli.output import print_line
from ccp.errors import CCPError

app = typer.Typer(
    name="ccp",
    cls=LazyCommands,
    help="Contract Certificate Pool for Plug&Charge (ISO 15118-2 and -20, OPNC).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        print_line(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: an error is a sentence on standard error and exit status 1; a traceback shows a mistake of ours."""
    try:
        app(prog_name="ccp")
    except CCPError as exc:
        for message in exc.messages:
            print_line(f"ccp: {message}", err=True)
        sys.exit(1)
    except OSError as exc:  # A file or directory that the command line names.
        print_line(f"ccp: {exc.filename or 'input or output'}: {exc.strerror or exc}.", err=True)
        sys.exit(1)
    except Exception as exc:
        if (said := _said_by_database(exc)) is None:
            raise
        print_line(f"ccp: The database refuses what was asked of it: {said}.", err=True)
        sys.exit(1)


_DRIVERS: Final = frozenset({"asyncpg", "sqlite3", "sqlalchemy"})


def _said_by_database(exc: Exception) -> str | None:
    """What a database said, in one line; None for what is no error of one. The drivers are not imported for this."""
    if isinstance(exc, ExceptionGroup):
        return next((said for each in exc.exceptions if (said := _said_by_database(each)) is not None), None)
    if not any(kind.__module__.partition(".")[0] in _DRIVERS for kind in type(exc).__mro__):
        return None
    lines = str(exc).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(exc).__name__
