"""ccp trust: which roots are trusted, for what."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from ccp.cli.show import ConfigOption, JsonOption, print_json, print_table, with_store
from ccp.errors import ConfigurationError
from ccp.ids import Fingerprint
from ccp.pki.certificates import Certificate
from ccp.pki.paths import Role
from ccp.store import Store, anchors
from ccp.store.anchors import TrustedCertificate
from ccp.trust import read_files, trusted

app = typer.Typer(help="Look after the trusted certificates.", no_args_is_help=True)


@app.command()
def add(
    path: Annotated[Path, typer.Argument(help="PEM or DER file, or a directory of such.")],
    role: Annotated[list[Role], typer.Option(help="v2g, emsp or oem; may be given several times.")],
    config: ConfigOption = None,
) -> None:
    """Trust certificates for a role: self-issued ones as roots, others as known intermediates."""
    found = [trusted(c, each, file.name, datetime.now(UTC)) for file, c in read_files(path) for each in role]
    if not found:
        raise ConfigurationError(f"There are no certificates in {path}.")

    async def change(store: Store) -> list[bool]:
        return [await store.write(anchors.add(certificate)) for certificate in found]

    for certificate, is_new in zip(found, with_store(config, change), strict=True):
        kind = "root" if certificate.is_root else "intermediate"
        typer.echo(f"{'added' if is_new else 'known'}  {certificate.role}  {kind}  {certificate.label}")


@app.command("list")
def list_trusted(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the trusted certificates."""

    async def read(store: Store) -> list[TrustedCertificate]:
        return await store.read(anchors.every())

    found = [_shown(entry) for entry in with_store(config, read)]
    if as_json:
        print_json(found)
        return
    columns = ["role", "kind", "label", "fingerprint", "valid to", "source"]
    print_table(columns, [[entry[column.replace(" ", "_")] for column in columns] for entry in found])


@app.command()
def remove(
    fingerprint: Annotated[str, typer.Argument(help="SHA-256, 64 hexadecimal digits.")],
    role: Annotated[Role | None, typer.Option(help="Only for this role.")] = None,
    config: ConfigOption = None,
) -> None:
    """Trust a certificate no longer."""
    named = Fingerprint.parse(fingerprint, "fingerprint")

    async def change(store: Store) -> int:
        return await store.write(anchors.remove(named, role.value if role else None))

    typer.echo(f"removed for {with_store(config, change)} role(s)")


def _shown(entry: TrustedCertificate) -> dict[str, str]:
    return {
        "role": entry.role,
        "kind": "root" if entry.is_root else "intermediate",
        "label": entry.label,
        "fingerprint": entry.fingerprint,
        "valid_to": Certificate.load(entry.certificate).not_after.strftime("%Y-%m-%d"),
        "source": entry.source,
        "added_at": entry.added_at.isoformat(),
    }
