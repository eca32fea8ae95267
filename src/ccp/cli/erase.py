"""ccp erase: data protection requests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ccp.audit import command_actor
from ccp.cli.show import ConfigOption, JsonOption, print_json, with_pool
from ccp.errors import ConfigurationError
from ccp.ids import EMAID, PCID

if TYPE_CHECKING:
    from ccp.pool import Pool
    from ccp.store.erasure import Erased


def register(app: typer.Typer) -> None:
    app.command()(erase)


def erase(
    emaid: Annotated[str | None, typer.Option(help="A contract.")] = None,
    pcid: Annotated[str | None, typer.Option(help="A vehicle, with every contract that waits for it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be erased.")] = False,
    tell: Annotated[
        bool, typer.Option("--tell/--tell-nobody", help="Whether the car maker is told of the contracts that go.")
    ] = True,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase everything that is kept about a contract or a vehicle; the audit trail stays verifiable.

    Certificates are not revoked by this: the eMSP's DELETE does that.
    """
    if (emaid is None) == (pcid is None):
        raise ConfigurationError("Give either --emaid or --pcid.")
    named: EMAID | PCID = PCID.parse(pcid) if pcid is not None else EMAID.parse(emaid or "")

    async def run(pool: Pool) -> Erased:
        return await pool.erase(named, datetime.now(UTC), actor=command_actor(), tell=tell, dry_run=dry_run)

    erased = with_pool(config, run)
    counts = {
        "contracts": erased.contracts,
        "variants": erased.variants,
        "events": erased.events,
        "evidence": erased.evidence + erased.watched,
        "audit_rows": erased.audit_rows,
        "vehicle": int(erased.vehicle),
    }
    if as_json:
        print_json({"dry_run": dry_run, "erased": counts, "events_waiting": erased.waiting})
        return
    would = "would be erased" if dry_run else "erased"
    words = ("contract(s)", "signed response(s)", "unsent event(s)", "entries of revocation evidence")
    for count, word in zip(counts.values(), words, strict=False):
        typer.echo(f"{count:>4}  {word} {would}")
    typer.echo(f"{erased.audit_rows:>4}  audit row(s) {'would lose' if dry_run else 'lost'} what they are about")
    typer.echo(f"{counts['vehicle']:>4}  vehicle(s) {would}")
    if erased.waiting:
        typer.echo(
            f"{erased.waiting} event(s) to the car maker still name it until they are sent, and keep a vehicle's row "
            "that long; run this again then, or now with --tell-nobody."
        )
