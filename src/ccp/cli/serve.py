"""ccp serve and ccp config: runs the server and prints its settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer

from ccp.cli.output import ConfigOption, JsonOption, print_json, print_line, print_table
from ccp.errors import ConfigurationError
from ccp.server import settings
from ccp.server.service_settings import SERVICES, ServiceSettings
from ccp.server.settings import MetricsAccess, Settings

_METRICS_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""As `ccp.server.metrics.SHARED`, which only functions import, because it loads prometheus-client."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
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
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="CAs of client certificates, PEM; every client then needs a certificate.")
    ] = None,
) -> None:
    """Run the pool. Creates a new SQLite database; create and upgrade any other schema with `ccp db upgrade`."""
    given: dict[str, Any] = {
        name: value
        for name, value in (
            ("host", host), ("port", port), ("workers", workers), ("database", database),
            ("tls_cert", tls_cert and tls_cert.resolve()), ("tls_key", tls_key and tls_key.resolve()),
            ("tls_client_ca", tls_client_ca and tls_client_ca.resolve()),
        )
        if value is not None
    }  # fmt: skip
    effective = settings.load(config, **given)
    _check(effective)
    with _shared_folder(effective, given):
        limit = _raise_descriptor_limit(effective, given)
        _export_environment(config, given)
        _run(effective, limit)


def _check(effective: Settings) -> None:
    """Check what workers depend on, so that an error is reported once and not by every worker.

    Raises ConfigurationError.
    """
    from ccp.server.storage.engine import schema

    if not schema.is_postgres(effective.database) and schema.revision(effective.database) is None:
        schema.upgrade(effective.database)
    schema.check(effective.database)
    for warning in schema.warnings(effective.database):
        print_line(f"warning: {warning}", err=True)
    if effective.tls_cert is not None:
        _check_tls(effective.tls_cert, effective.tls_key, effective.tls_client_ca)
    if effective.issuers:
        from ccp.server.access.trusted_issuers import check_key_files

        check_key_files(effective.issuers)
    if effective.services:
        from ccp.server.external.service_connection import check_files

        check_files(effective.services)


def _raise_descriptor_limit(effective: Settings, given: dict[str, Any]) -> int | None:
    """Raise the limit on file descriptors for a worker's connections. Returns the limit; None if there is none."""
    from ccp.cli import descriptors

    limit = descriptors.raise_limit(descriptors.needed(effective))
    if (
        limit is not None
        and (possible := descriptors.connections_possible(effective, limit)) < effective.max_connections
    ):
        print_line(
            f"warning: {limit} file descriptors are too few for max_connections = {effective.max_connections}; "
            f"a worker accepts {possible} connections. Raise the hard limit (ulimit -Hn, LimitNOFILE) to "
            f"{descriptors.needed(effective)}.",
            err=True,
        )
        given["max_connections"] = possible
    return limit


def _run(effective: Settings, limit: int | None) -> None:
    from ccp.cli import workers
    from ccp.server import logging, metrics
    from ccp.server.http.uvicorn_options import uvicorn_options
    from ccp.server.storage.engine import schema

    allowed = "any number of" if limit is None else limit
    print_line(
        f"opnc-ccp on {effective.public_url} (database {effective.redacted()['database']}, {allowed} file descriptors "
        "per worker)",
        err=True,
    )
    if effective.workers > 1:
        logging.configure(effective)
        assert metrics.is_shared() or effective.metrics is MetricsAccess.OFF
    workers.run(
        "ccp.server.app:create_app",
        preload=(
            "ccp.server.storage.engine.postgres"
            if schema.is_postgres(effective.database)
            else "ccp.server.storage.engine.sqlite",
        ),
        factory=True,
        host=effective.host,
        port=effective.port,
        workers=effective.workers,
        log_level="warning",
        **uvicorn_options(effective),
    )


@contextmanager
def _shared_folder(effective: Settings, given: dict[str, Any]) -> Iterator[None]:
    """Create the temporary folder in which several workers share rate limits and metrics.

    The settings may name another file for the rate limits.
    """
    file = effective.rate_limit_file
    with ExitStack() as stack:
        if effective.workers > 1:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="opnc-ccp-")))
            if file is None:
                given["rate_limit_file"] = file = folder / "limits"
            if effective.metrics is not MetricsAccess.OFF:
                (folder / "metrics").mkdir()
                os.environ[_METRICS_FOLDER] = str(folder / "metrics")
                stack.callback(os.environ.pop, _METRICS_FOLDER)
        if file is not None:
            from ccp.server.access.token_bucket import SharedTokenBucket

            SharedTokenBucket.prepare(file)
        yield


def _check_tls(certificate: Path, key: Path | None, client_ca: Path | None) -> None:
    """Load the TLS files as the server would. Raises ConfigurationError; in a worker it would be a traceback."""
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as exc:  # SSLError is a subclass.
        reason = exc.strerror or str(exc)
        raise ConfigurationError(f"The TLS certificate {certificate} and key {key} cannot be used: {reason}.") from exc
    if client_ca is None:
        return
    try:
        context.load_verify_locations(client_ca)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise ConfigurationError(f"The CAs of client certificates {client_ca} cannot be used: {reason}.") from exc


def _export_environment(config: Path | None, given: dict[str, Any]) -> None:
    """Pass the configuration file, the values of the command line and this process's clock to workers.

    Workers read the environment when they start. So replacements get the same values, and read the file anew.
    """
    from ccp.server.runtime import clock

    clock.hand_over(datetime.now(UTC))
    if config is not None:
        os.environ["CCP_CONFIG"] = str(config.resolve())
    for name, value in given.items():
        os.environ[f"CCP_{name.upper()}"] = str(value)


def show_config(
    config: ConfigOption = None, as_json: JsonOption = False,
    explain: Annotated[bool, typer.Option("--explain", help="Explain each setting.")] = False,
) -> None:  # fmt: skip
    """Print the effective settings, without secrets."""
    shown = settings.load(config).redacted()
    if as_json:
        print_json(shown)
        return
    rows = [list(row)[: 3 if explain else 2] for row in _rows(shown)]
    print_table(["setting", "value", "meaning"][: 3 if explain else 2], rows)


def _rows(shown: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, value and meaning of each setting. A service has a row for each of its settings, if it is configured."""
    for name, value in shown.items():
        meaning = Settings.model_fields[name].description or ""
        if name not in SERVICES:
            yield name, "" if value is None else str(value), meaning
            continue
        for member, field in ServiceSettings.model_fields.items():
            member_value = (value or {}).get(member)
            if value or member == "url":
                text = "" if member_value is None else str(member_value)
                yield f"{name}_{member}", text, meaning if member == "url" else field.description or ""
