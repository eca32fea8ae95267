"""ccp neighbour: the external services that this pool calls, and whether they answer as configured."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ccp.cli import subscriptions
from ccp.cli.output import ConfigOption, JsonOption, print_json, print_line, print_styled, print_table
from ccp.errors import CCPError, ConfigurationError
from ccp.server import logging, settings
from ccp.server.external.outbound import OutboundClient
from ccp.server.external.service_check import ServiceCheck, check_service
from ccp.server.external.service_connection import ServiceConnection
from ccp.server.external.services import ExternalServices
from ccp.server.runtime.redacted_urls import hide_credentials
from ccp.server.settings import Settings
from ccp.server.settings.services import SERVICES, ServiceSettings
from ccp.server.storage import connect
from ccp.server.storage.engine.time_limits import COMMANDS
from ccp.server.trust.anchors import TrustStore
from ccp.x509.path_validation import TrustAnchors

app = typer.Typer(no_args_is_help=True)
subscriptions.register(app)


@app.command("list")
def list_services(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the configured external services, without secrets."""
    found = [_described(prefix, service) for prefix, service in settings.load(config).services.items()]
    if as_json:
        print_json(found)
        return
    columns = ["service", "name", "url", "dialect", "authentication", "ca"]
    print_table(columns, [[str(entry[column] or "") for column in columns] for entry in found])


@app.command("test")
def check_services(
    name: Annotated[
        str | None, typer.Argument(metavar="[SERVICE]", help=f"One of {', '.join(SERVICES)}. Default: all configured.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Test the external services: name, connection, TLS, token, and a first call that changes nothing.

    Exit status 1 if one of them fails; each failure comes with a sentence that says what to do.
    """
    effective = settings.load(config)
    # The report has what the log would have.
    logging.configure(effective.model_copy(update={"log_level": "error"}))
    checks = asyncio.run(_check(effective, _selected(effective, name)))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        _print(checks)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _selected(effective: Settings, name: str | None) -> tuple[str, ...]:
    """The prefixes of the services to test. Raises ConfigurationError."""
    if name is None:
        return tuple(effective.services)
    if name not in SERVICES:
        raise ConfigurationError(f"There is no service {name}; the services are {', '.join(SERVICES)}.")
    if name not in effective.services:
        raise ConfigurationError(f"No {SERVICES[name]} is configured: {name}_url is not set.")
    return (name,)


async def _check(effective: Settings, selected: tuple[str, ...]) -> list[ServiceCheck]:
    outbound = OutboundClient(effective.egress_allow_networks)
    try:
        connections = ExternalServices.from_settings(effective, outbound).connections
        anchors = await _anchors(effective) if "cps" in selected else None
        chosen = {prefix: connections[prefix] for prefix in selected}
        return await _check_each(outbound, chosen, anchors, effective.est_labels)
    finally:
        await outbound.close()


async def _check_each(
    outbound: OutboundClient,
    connections: Mapping[str, ServiceConnection],
    anchors: TrustAnchors | None,
    est_labels: Mapping[str, str],
) -> list[ServiceCheck]:
    now, backend = datetime.now(UTC), outbound.configured_backend
    checks = (
        check_service(connection, prefix, backend, anchors, now, est_labels)
        for prefix, connection in connections.items()
    )
    return list(await asyncio.gather(*checks))


async def _anchors(effective: Settings) -> TrustAnchors | None:
    """The trust anchors of this pool; None if the database cannot be read, which is no fault of the service."""
    store = connect(effective.database, limits=COMMANDS, secrets_key_file=effective.secrets_key_file)
    try:
        await store.open()
        trust = TrustStore(store)
        await trust.refresh()
    except CCPError as exc:
        print_line(f"The trust anchors cannot be read: {exc}", err=True)
        return None
    finally:
        await store.close()
    return trust.anchors


def _print(checks: list[ServiceCheck]) -> None:
    if not checks:
        print_line("No external service is configured.")
    for check in checks:
        taken = "" if check.ms is None else f"  {check.ms:g} ms"
        style = "green" if check.ok else "bold red"
        print_styled(("ok     " if check.ok else "failed ", style), (f"{check.service}  {check.url}{taken}", ""))
        for step in check.steps:
            print_line(f"       {step.name:8}{step.detail}")
        if check.advice is not None:
            print_line(f"       {check.advice}")


def _described(prefix: str, service: ServiceSettings) -> dict[str, Any]:
    def shown(path: Path | None) -> str | None:
        return None if path is None else str(path)

    return {
        "service": prefix,
        "name": SERVICES[prefix],
        "url": hide_credentials(service.url),
        "dialect": service.dialect.value,
        "authentication": service.authentication,
        "ca": shown(service.ca),
    }
