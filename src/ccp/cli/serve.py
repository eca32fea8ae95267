"""ccp serve and ccp config."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Annotated, Any

import typer

from ccp import settings
from ccp.cli.show import ConfigOption, JsonOption, print_json, print_table
from ccp.errors import ConfigurationError
from ccp.settings import Settings
from ccp.store import schema


def register(app: typer.Typer) -> None:
    app.command()(serve)
    app.command("config")(show_config)


def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.")] = None,
    database: Annotated[str | None, typer.Option(help="Database URL.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Server certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Server private key, PEM.")] = None,
) -> None:
    """Run the pool. A new SQLite database is created; every other schema is made and upgraded with `ccp db upgrade`."""
    import uvicorn

    given: dict[str, Any] = {
        name: value
        for name, value in (
            ("host", host), ("port", port), ("workers", workers), ("database", database),
            ("tls_cert", tls_cert and tls_cert.resolve()), ("tls_key", tls_key and tls_key.resolve()),
        )
        if value is not None
    }  # fmt: skip
    effective = settings.load(config, **given)
    if not schema.is_postgres(effective.database) and schema.revision(effective.database) is None:
        schema.upgrade(effective.database)
    schema.check(effective.database)  # Here, so that it is told once and not by every worker.
    for warning in schema.warnings(effective.database):
        typer.echo(f"warning: {warning}", err=True)
    if effective.tls_cert is not None:
        _check_tls(effective.tls_cert, effective.tls_key)
    _hand_over(config, given)
    typer.echo(f"opnc-ccp on {effective.public_url} (database {effective.shown()['database']})", err=True)
    uvicorn.run(
        "ccp.app:create",
        factory=True,
        host=effective.host,
        port=effective.port,
        workers=effective.workers,
        ssl_certfile=effective.tls_cert,
        ssl_keyfile=effective.tls_key,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=20,
    )


def _check_tls(certificate: Path, key: Path | None) -> None:
    """Raises ConfigurationError where the server could not use them; told by workers it would be a traceback each."""
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except OSError as exc:  # An SSLError is one.
        reason = exc.strerror or str(exc)
        raise ConfigurationError(f"The TLS certificate {certificate} and key {key} cannot be used: {reason}.") from exc


def _hand_over(config: Path | None, given: dict[str, Any]) -> None:
    """Workers are new processes: they read the same file, and the command line's values from the environment."""
    if config is not None:
        os.environ["CCP_CONFIG"] = str(config.resolve())
    for name, value in given.items():
        os.environ[f"CCP_{name.upper()}"] = str(value)


def show_config(
    config: ConfigOption = None, as_json: JsonOption = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say what each setting means.")] = False,
) -> None:  # fmt: skip
    """Print the effective settings, without secrets."""
    shown = settings.load(config).shown()
    if as_json:
        print_json(shown)
        return
    fields = Settings.model_fields
    rows = [
        [name, "" if value is None else str(value), fields[name].description or ""][: 3 if explain else 2]
        for name, value in shown.items()
    ]
    print_table(["setting", "value", "meaning"][: 3 if explain else 2], rows)
