"""ccp erase: erasure on data protection requests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ccp.cli.output import ConfigOption, JsonOption, YesOption, confirm, print_json, print_line, with_pool
from ccp.errors import ConfigurationError
from ccp.ids import EMAID, PCID
from ccp.server import settings
from ccp.server.audit.actor import command_actor
from ccp.server.storage.engine import schema
from ccp.server.storage.engine.scrubbing import Scrubbed, scrub

_SETTLE: Final = 1.5
"""Seconds. Workers write the records of refused deliveries every second."""

if TYPE_CHECKING:
    from ccp.server.pool.operations import Pool
    from ccp.server.storage.queries.erasure import Erased


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(erase)


def erase(
    emaid: Annotated[str | None, typer.Option(help="EMAID of a contract.")] = None,
    pcid: Annotated[str | None, typer.Option(help="PCID of a vehicle; erases its contracts too.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be erased.")] = False,
    yes: YesOption = False,
    notify: Annotated[
        bool, typer.Option("--notify/--no-notify", help="Whether the car maker is notified of erased contracts.")
    ] = True,
    vacuum: Annotated[
        bool,
        typer.Option(
            "--vacuum/--no-vacuum",
            help="SQLite: rebuild the file if it still contains the id. Blocks publishing meanwhile.",
        ),
    ] = True,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase all data about a contract or a vehicle; the audit trail stays verifiable.

    It does not revoke certificates: the eMSP's DELETE does. With SQLite the database's files are cleared too, while the
    pool runs. Exit status 1: the rows are erased, but a file still has to be cleared.
    """
    if (emaid is None) == (pcid is None):
        raise ConfigurationError("Give either --emaid or --pcid.")
    named: EMAID | PCID = PCID.parse(pcid) if pcid is not None else EMAID.parse(emaid or "")

    if not dry_run:
        confirm(f"Erase all data about {named}", yes=yes)

    async def run(pool: Pool) -> Erased:
        return await pool.erase(
            named, datetime.now(UTC), actor=command_actor(), notify=notify, dry_run=dry_run, settle=_SETTLE
        )

    erased = with_pool(config, run)
    # A waiting event to the car maker still contains the id: the files are cleared by a run after it is sent.
    database = settings.load(config).database
    sqlite = not schema.is_postgres(database)
    scrubbed = None
    if sqlite and not dry_run and not erased.waiting:
        scrubbed = scrub(schema.sqlite_file(database), named, vacuum=vacuum)
    counts = {
        "contracts": erased.contracts,
        "variants": erased.variants,
        "events": erased.events,
        "deliveries": erased.deliveries,
        "refusals": erased.refusals,
        "evidence": erased.evidence + erased.watched,
        "audit_rows": erased.audit_rows,
        "vehicle": int(erased.vehicle),
    }
    problem = None if scrubbed is None else _problem(scrubbed)
    if as_json:
        files = None if scrubbed is None else {"cleared": problem is None, "rebuilt": scrubbed.vacuumed}
        print_json({"dry_run": dry_run, "erased": counts, "events_waiting": erased.waiting, "files": files})
    else:
        _print(erased, counts, dry_run)
        if scrubbed is not None and problem is None:
            print_line("The database's files no longer contain the id.")
        elif not sqlite and not dry_run:
            print_line(
                "PostgreSQL keeps removed rows in its files until they are vacuumed, and in its write-ahead log."
            )
    if problem is not None:
        raise ConfigurationError(problem)


def _print(erased: Erased, counts: dict[str, int], dry_run: bool) -> None:
    would = "would be erased" if dry_run else "erased"
    words = (
        "contract(s)",
        "signed response(s)",
        "unsent event(s)",
        "remembered deliveries",
        "refused deliveries",
        "entries of revocation evidence",
    )
    for count, word in zip(counts.values(), words, strict=False):
        print_line(f"{count:>4}  {word} {would}")
    print_line(f"{erased.audit_rows:>4}  audit row(s) {'would lose' if dry_run else 'lost'} their subject")
    print_line(f"{counts['vehicle']:>4}  vehicle(s) {would}")
    if erased.waiting:
        print_line(
            f"{erased.waiting} event(s) to the car maker still name it until they are sent, and keep a vehicle's row "
            "until then; run this command again afterwards, or now with --no-notify."
        )


def _problem(scrubbed: Scrubbed) -> str | None:
    """Why the files still contain the id, as a sentence; None if they are clear."""
    if not scrubbed.log_emptied:
        return (
            "The rows are erased, but the write-ahead log still holds them: a process (a backup?) reads an older "
            "state. Run this command again when it has ended."
        )
    if not scrubbed.found:
        return None
    if scrubbed.vacuumed:
        return (
            "The rows are erased, but the database still has the id in data that is kept or was added since: a refused "
            "request, the name of a party, the description of a webhook, the metadata of another contract, or a longer "
            "id that begins with it."
        )
    return "The rows are erased, but free space of the database file contains the id; run this command with --vacuum."
