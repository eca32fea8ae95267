"""ccp crl: certificate revocation lists in the database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from ccp.cli.output import ConfigOption, JsonOption, YesOption, confirm, print_json, print_line, print_table, with_store
from ccp.errors import ChainError, NotFound
from ccp.server.audit.actor import command_actor
from ccp.server.storage import Store
from ccp.server.storage.queries import crls
from ccp.server.storage.queries.audit import with_audit
from ccp.server.storage.queries.crls import CRLRecord
from ccp.x509.certificates import Certificate

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_held(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the CRLs in the database, with number and validity."""

    async def read(store: Store) -> list[CRLRecord]:
        return await store.read(crls.list_all())

    found = [_shown(one) for one in with_store(config, read)]
    if as_json:
        print_json(found)
        return
    columns = ["issuer", "number", "this update", "next update", "fetched at", "url"]
    print_table(columns, [[str(_dash(one[column.replace(" ", "_")])) for column in columns] for one in found])


@app.command()
def accept(
    url: Annotated[str, typer.Argument(help="Address of the CRL, as in ccp crl list.")],
    issuer: Annotated[str | None, typer.Option(help="Common name of the issuer, if several share the address.")] = None,
    yes: YesOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Accept the next CRL from an address even if its CRL number is lower or missing.

    For a CA that has restarted its CRL numbers. A lower number can also mean that an old list is replayed: ask the CA
    first. A list with an older thisUpdate is still refused, and revoked certificates stay revoked.
    """

    async def read(store: Store) -> list[CRLRecord]:
        return [one for one in await store.read(crls.list_all(url)) if issuer in (None, _label(one))]

    found = with_store(config, read)
    if not found:
        raise NotFound(f"There is no CRL from {url}{f' of {issuer}' if issuer else ''}.")
    lists = ", ".join(f"{_label(one)} (number {_dash(one.number)})" for one in found)
    confirm(f"Accept the next CRL from {url} with any number: {lists}", yes=yes)

    async def change(store: Store) -> list[CRLRecord]:
        now = datetime.now(UTC)
        done = []
        for one in found:
            accepted = await store.write(
                with_audit(
                    crls.accept_any_number(one.issuer, one.url),
                    lambda was: [crls.accepted_entry(was, _label(was), command_actor(), now)] if was else [],
                )
            )
            done += [accepted] if accepted else []
        return done

    accepted = [_shown(one) for one in with_store(config, change)]
    if as_json:
        print_json({"accepted": accepted})
        return
    for one in accepted:
        print_line(f"accepted  {one['issuer']}  {one['url']}  (previous number: {_dash(one['number'])})")


def _shown(held: CRLRecord) -> dict[str, Any]:
    return {
        "issuer": _label(held),
        "number": held.number,
        "this_update": held.this_update.isoformat(timespec="seconds"),
        "next_update": held.next_update.isoformat(timespec="seconds"),
        "fetched_at": held.fetched_at.isoformat(timespec="seconds"),
        "url": held.url,
    }


def _label(held: CRLRecord) -> str:
    """The issuer's common name, printable."""
    try:
        name = Certificate.load(held.issuer_certificate).subject_cn
    except ChainError:
        name = ""
    return "".join(c if c.isprintable() else "?" for c in name) or held.issuer[:16]


def _dash(value: object) -> object:
    return "-" if value is None else value
