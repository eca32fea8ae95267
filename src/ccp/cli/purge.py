"""ccp purge: removes expired and revoked contracts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ccp.cli.output import (
    ConfigOption,
    JsonOption,
    YesOption,
    confirm,
    print_json,
    print_line,
    print_table,
    with_services,
)
from ccp.server.audit.actor import command_actor

if TYPE_CHECKING:
    from ccp.server.app import Services
    from ccp.server.pool.maintenance import Purged


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(purge)


def purge(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    yes: YesOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove contracts that have expired or are revoked; car makers are notified as of any removal."""

    if not dry_run:
        confirm("Remove every contract that has expired or is revoked", yes=yes)

    async def run(built: Services) -> list[Purged]:
        # `checked` raises if the clock is implausible.
        at = datetime.now(UTC) if dry_run else await built.guard.checked()
        purged = built.pool.purge_expired(at, actor=command_actor(), dry_run=dry_run)
        return list({each.emaid: each async for each in purged}.values())  # A dry run may find a contract twice.

    found = with_services(config, run)
    if as_json:
        print_json([{"emaid": each.emaid, "pcid": each.pcid, "reason": each.reason} for each in found])
        return
    print_table(["EMAID", "PCID", "reason"], [[each.emaid, each.pcid, each.reason] for each in found])
    print_line(f"{len(found)} contract(s) {'would be removed' if dry_run else 'removed'}.")
