"""The `ccp` command: one module per command group, imported when one of its commands is called (`commands`)."""

from __future__ import annotations

import sys

from ccp.cli.extras import is_missing_library


def main() -> None:
    """Entry point of the `ccp` script."""
    try:
        from ccp.cli.root import run
    except ModuleNotFoundError as exc:
        if not is_missing_library(exc):
            raise
        sys.exit("ccp: The command line needs typer and rich; install opnc-ccp[cli].")
    run()
