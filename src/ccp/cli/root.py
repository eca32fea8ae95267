"""The root of the command tree, and how errors become an exit status."""

from __future__ import annotations

import sys
from typing import Final

import typer

from ccp import __version__
from ccp.cli.commands import LazyCommands
from ccp.cli.completion import completion
from ccp.cli.output import print_exactly, print_line
from ccp.errors import CCPError

app = typer.Typer(
    name="ccp",
    cls=LazyCommands,
    help="Contract Certificate Pool for Plug & Charge (ISO 15118-2 and -20, OPNC).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_DATABASE_DRIVERS: Final = frozenset({"asyncpg", "sqlite3", "sqlalchemy"})


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    """Print the version, or leave the work to a command."""
    if version:
        print_line(__version__)
        raise typer.Exit


def run() -> None:
    """Run the command line. An expected error is one sentence on standard error and exit status 1; a traceback means a
    defect of the pool.
    """
    try:
        if (script := completion(sys.argv[1:], "ccp")) is not None:
            print_exactly(f"{script}\n")
            return
        app(prog_name="ccp")
    except CCPError as exc:
        for message in exc.messages:
            print_line(f"ccp: {message}", err=True)
        sys.exit(1)
    except OSError as exc:  # A file or directory named on the command line.
        print_line(f"ccp: {exc.filename or 'input or output'}: {exc.strerror or exc}.", err=True)
        sys.exit(1)
    except Exception as exc:
        if (reason := _database_message(exc)) is None:
            raise
        print_line(f"ccp: The database refuses the command: {reason}.", err=True)
        sys.exit(1)


def _database_message(exc: Exception) -> str | None:
    """The first line of a database error; None for any other error. Compares names, so that no driver is imported."""
    if isinstance(exc, ExceptionGroup):
        return next((found for item in exc.exceptions if (found := _database_message(item)) is not None), None)
    if not any(kind.__module__.partition(".")[0] in _DATABASE_DRIVERS for kind in type(exc).__mro__):
        return None
    lines = str(exc).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(exc).__name__
