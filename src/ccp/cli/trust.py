"""ccp trust: trusted certificates and their roles."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ccp.cli.output import (
    ConfigOption,
    JsonOption,
    YesOption,
    confirm,
    print_exactly,
    print_json,
    print_line,
    print_table,
    with_store,
)
from ccp.errors import ConfigurationError, NotFound
from ccp.ids import Fingerprint, parse_fingerprint
from ccp.server import logging, settings
from ccp.server.audit.actor import command_actor
from ccp.server.external.outbound import OutboundClient
from ccp.server.external.services import ExternalServices
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query, long_write
from ccp.server.storage.queries import anchors, audit
from ccp.server.storage.queries.anchors import TrustedCertificate
from ccp.server.storage.queries.audit import Entry, with_audit
from ccp.server.storage.queries.change_counters import ChangeCounter, lock
from ccp.server.trust import anchors as trust
from ccp.server.trust.anchors import Expiry, trusted_certificate
from ccp.server.trust.root_sync import RootSyncResult, sync_roots
from ccp.verify.trust_folder import read_certificate_files
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import AnchorRole

app = typer.Typer(no_args_is_help=True)


@app.command()
def add(
    path: Annotated[Path, typer.Argument(help="PEM or DER file, or a directory of them.")],
    role: Annotated[list[AnchorRole], typer.Option(help="v2g, emsp or oem; may be given several times.")],
    label: Annotated[str | None, typer.Option(help="Name for display. Default: the common name.")] = None,
    expect_fingerprint: Annotated[
        list[str] | None,
        typer.Option(help="SHA-256 fingerprint that a certificate must have; for several, several times."),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Trust certificates for a role: self-issued ones as roots, others as known intermediates.

    All of them are one change: if one is refused, or the command is interrupted, none is added.
    """
    at = datetime.now(UTC)
    files = list(read_certificate_files(path))
    if not files:
        raise ConfigurationError(f"There are no certificates in {path}.")
    refused = [
        f"{file}: {reason} Nothing was added."
        for file, certificate in files
        if (reason := trust.refusal(certificate)) is not None
    ]
    if expect_fingerprint:
        refused += _unexpected(files, {parse_fingerprint(text, "expect-fingerprint") for text in expect_fingerprint})
    if refused:
        raise ConfigurationError(*refused)
    found = [
        trusted_certificate(certificate, each, file.name, at, label)
        for certificate, file in {certificate: file for file, certificate in files}.items()
        for each in dict.fromkeys(role)
    ]

    @long_write
    def keep() -> Query[list[bool]]:
        added = []
        yield lock(ChangeCounter.ANCHORS)  # Before the rows, as `ccp apply` locks them.
        for certificate in found:
            added.append((yield from anchors.add_by_operator(certificate)))  # noqa: PERF401  no yield in comprehensions
        pairs = zip(found, added, strict=True)
        yield from audit.record(*(anchors.added_entry(each, command_actor(), at, new=new) for each, new in pairs))
        return added

    async def change(store: Store) -> list[bool]:
        return await store.write(keep())

    results = list(zip(found, with_store(config, change), strict=True))
    if as_json:
        print_json([{**_shown(entry, at), "added": is_new} for entry, is_new in results])
        return
    for entry, is_new in results:
        print_line(f"{'added' if is_new else 'known'}  {_line(entry)}  {entry.fingerprint}")
    for entry in {entry.fingerprint: entry for entry in found}.values():
        warning = trust.expiry_warning(Certificate.load(entry.certificate), at)
        if warning:
            print_line(f"warning: {warning}", err=True)


def _unexpected(files: list[tuple[Path, Certificate]], expected: set[Fingerprint]) -> list[str]:
    """Sentences for certificates whose fingerprint is not expected, and for expected ones that are absent."""
    found = {certificate.fingerprint: file for file, certificate in files}
    other = [
        f"{file}: the certificate's fingerprint is {each}, which is not expected. Nothing was added."
        for each, file in found.items()
        if each not in expected
    ]
    absent = [
        f"No certificate has the expected fingerprint {each}. Nothing was added." for each in expected - found.keys()
    ]
    return other or sorted(absent)


@app.command("list")
def list_trusted(
    role: Annotated[AnchorRole | None, typer.Option(help="Only this role.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the trusted certificates, and warn of those that have expired or expire within 90 days."""
    at = datetime.now(UTC)
    found = [_shown(entry, at) for entry in with_store(config, _read(role))]
    if as_json:
        print_json(found)
        return
    columns = ["role", "kind", "label", "state", "valid to", "added at", "source", "fingerprint"]
    print_table(columns, [[entry[column.replace(" ", "_")] for column in columns] for entry in found])
    for state in (Expiry.EXPIRED, Expiry.SOON, Expiry.NOT_YET):
        count = sum(entry["state"] == state for entry in found)
        if count:
            print_line(f"warning: {count} certificate(s): {state}.", err=True)


@app.command()
def show(
    fingerprint: Annotated[str, typer.Argument(help="SHA-256 fingerprint, with or without colons.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a trusted certificate: each role it is trusted for, its names and its validity."""
    named = parse_fingerprint(fingerprint)
    at = datetime.now(UTC)
    found = [entry for entry in with_store(config, _read(None)) if entry.fingerprint == named]
    if not found:
        raise NotFound(f"No certificate with the fingerprint {named} is trusted.")
    certificate = Certificate.load(found[0].certificate)
    names = {
        "subject": certificate.subject_dn,
        "issuer": certificate.issuer_dn,
        "serial": f"{certificate.serial_number:x}",
    }
    if as_json:
        print_json([{**_shown(entry, at), **names} for entry in found])
        return
    for name, value in names.items():
        print_line(f"{name:<11}  {value}")
    for entry in found:
        for name, value in _shown(entry, at).items():
            print_line(f"{name.replace('_', ' '):<11}  {value}")


@app.command()
def remove(
    fingerprint: Annotated[str, typer.Argument(help="SHA-256 fingerprint, with or without colons.")],
    role: Annotated[AnchorRole | None, typer.Option(help="Only for this role.")] = None,
    yes: YesOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove the trust in a certificate. Running workers follow within seconds."""
    named = parse_fingerprint(fingerprint)
    confirm(f"Remove the trust in {named}{f' for {role.value}' if role else ''}", yes=yes)

    async def change(store: Store) -> list[str]:
        now = datetime.now(UTC)

        def tell(roles: list[str]) -> list[Entry]:
            return [anchors.removed_entry(named, roles, command_actor(), now)]

        return await store.write(with_audit(anchors.remove(named, role.value if role else None, now=now), tell))

    roles = with_store(config, change)
    if as_json:
        print_json({"fingerprint": named, "removed": roles})
    else:
        print_line(f"removed for {len(roles)} role(s)")


@app.command()
def export(
    directory: Annotated[
        Path | None, typer.Argument(help="New or empty directory, in the form that ccp verify --trust reads.")
    ] = None,
    role: Annotated[
        AnchorRole | None, typer.Option(help="Only this role; without a directory, to standard output.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the trusted certificates as PEM: one file each in v2g/, emsp/ and oem/, or one role to standard output."""
    if directory is None and role is None:
        raise ConfigurationError("Give a directory, or --role for one PEM on standard output.")
    if directory is None and as_json:
        raise ConfigurationError("--json needs a directory; without one, standard output is the PEM.")
    found = with_store(config, _read(role))
    if not found:
        raise ConfigurationError("No certificate is trusted; there is nothing to export.")
    if directory is None:
        for entry in found:
            print_exactly(Certificate.load(entry.certificate).pem().decode("ascii"))
        return
    files = trust.export_certificates(found, directory)
    if as_json:
        print_json({"directory": str(directory), "files": [str(file.relative_to(directory)) for file in files]})
    else:
        print_line(f"wrote {len(files)} file(s) to {directory}")


@app.command()
def sync(
    prune: Annotated[bool, typer.Option("--prune", help="Remove roots that are no longer listed.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import the roots that the configured Root Certificate Pool lists.

    Roots that were imported from it and are no longer listed are reported, and removed only with --prune. Certificates
    that were added by `ccp trust add` stay.
    """
    effective = settings.load(config)
    if effective.rcp is None:
        raise ConfigurationError("No Root Certificate Pool is configured: rcp_url is not set.")
    logging.configure(effective)  # On standard error, so that --json prints JSON only.

    async def run(store: Store) -> RootSyncResult:
        outbound = OutboundClient(effective.egress_allow_networks)
        try:
            rcp = ExternalServices.from_settings(effective, outbound).root_pool
            assert rcp is not None, "rcp is set"
            now = datetime.now(UTC)
            return await sync_roots(store, rcp, now, roles=effective.rcp_roles, prune=prune, actor=command_actor())
        finally:
            await outbound.close()

    done = with_store(config, run)
    if as_json:
        at = datetime.now(UTC)
        print_json(
            {
                "added": [_shown(entry, at) for entry in done.added],
                "gone": [_shown(entry, at) for entry in done.delisted],
                "pruned": done.pruned,
                "unusable": list(done.unusable),
            }
        )
        return
    for entry in done.added:
        print_line(f"added  {_line(entry)}  {entry.fingerprint}")
    for entry in done.delisted:
        kept = "removed" if done.pruned else "no longer listed, still trusted (--prune removes it)"
        print_line(f"{kept}  {_line(entry)}  {entry.fingerprint}")
    for sentence in done.unusable:
        print_line(f"not used: {sentence}", err=True)
    if not done.added and not done.delisted:
        print_line("no changes")


def _read(role: AnchorRole | None) -> Callable[[Store], Coroutine[Any, Any, list[TrustedCertificate]]]:
    async def read(store: Store) -> list[TrustedCertificate]:
        return [entry for entry in await store.read(anchors.list_all()) if role is None or entry.role == role.value]

    return read


def _line(entry: TrustedCertificate) -> str:
    return f"{entry.role}  {'root' if entry.is_root else 'intermediate'}  {entry.label}"


def _shown(entry: TrustedCertificate, at: datetime) -> dict[str, str]:
    certificate = Certificate.load(entry.certificate)
    return {
        "role": entry.role,
        "kind": "root" if entry.is_root else "intermediate",
        "label": entry.label,
        "fingerprint": entry.fingerprint,
        "valid_from": certificate.not_before.strftime("%Y-%m-%d"),
        "valid_to": certificate.not_after.strftime("%Y-%m-%d"),
        "state": Expiry.of(certificate, at).value,
        "source": entry.source,
        "added_at": entry.added_at.isoformat(timespec="seconds"),
    }
