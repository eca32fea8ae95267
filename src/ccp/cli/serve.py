"""ccp serve and ccp config: runs the server and prints its settings."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer

from ccp.cli import startup
from ccp.cli.documentation.markdown import plain
from ccp.cli.output import ConfigOption, JsonOption, ServerConfigOption, print_json, print_line, print_table
from ccp.errors import ConfigurationError
from ccp.server import settings
from ccp.server.settings import MetricsAccess, Settings
from ccp.server.settings.services import SERVICES, ServiceSettings

_METRICS_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""As `ccp.server.metrics.SHARED`, which only functions import, because it loads prometheus-client."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(serve)
    app.command("config")(show_config)


def serve(
    config: ServerConfigOption = None,
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
    new_database, database_warnings = _check(effective)
    from ccp.server.reloading import hold_signal

    tls = startup.check_tls(effective)
    stream_warnings = [*startup.check_audit_stream(effective)]
    bound = startup.bind(effective.host, effective.port)
    with _shared_folder(effective, given) as prepare_folder:
        limit, warnings = _raise_descriptor_limit(effective, given)
        report = _report(effective, bound, config, limit, tls, new_database=new_database)
        warnings += [*database_warnings, *stream_warnings, *startup.warnings(effective, report, tls, datetime.now(UTC))]
        _export_environment(config, given)
        hold_signal()
        _show(effective, report, warnings)
        _run(effective, bound, prepare_folder)


def _check(effective: Settings) -> tuple[bool, tuple[str, ...]]:
    """Check what workers depend on, so that an error is reported once and not by every worker.

    Creates an SQLite database that does not exist. Returns whether it did, and warnings about the configuration of the
    database. Raises ConfigurationError.
    """
    from ccp.server.storage import storage_key_rotation
    from ccp.server.storage.engine import schema

    new = not schema.is_postgres(effective.database) and schema.revision(effective.database) is None
    if new:
        schema.upgrade(effective.database)
    schema.check(effective.database)
    secrets = storage_key_rotation.start_warnings(effective)
    startup.check_documentation(effective)
    if effective.issuers:
        from ccp.server.access.trusted_issuers import check_key_files

        check_key_files(effective.issuers)
    return new, (*schema.warnings(effective.database), *secrets)


def _report(
    effective: Settings,
    bound: socket.socket,
    config: Path | None,
    limit: int | None,
    tls: startup.ServerCertificate | None,
    *,
    new_database: bool,
) -> startup.StartReport:
    from ccp.server.http import documentation_build
    from ccp.server.http.documentation_site import PREFIX
    from ccp.server.storage.overview import overview

    held = overview(effective.database)
    host, port = bound.getsockname()[:2]
    file = settings.file_in_effect(config)
    return startup.StartReport(
        url=effective.public_url,
        address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        settings="none" if file is None else str(file.resolve()),
        database=_shown(effective),
        new_database=new_database,
        workers=effective.workers,
        file_descriptors=limit,
        anchors=held.anchors,
        parties=held.parties,
        peers=held.peers,
        tls_valid_until=None if tls is None else tls.not_after.isoformat(timespec="minutes"),
        console=f"{effective.public_url}/console/" if effective.console else None,
        documentation=f"{effective.public_url}{PREFIX}/" if documentation_build.is_served(effective) else None,
    )


def _shown(effective: Settings) -> str:
    """Return the database without credentials; a file with its absolute path."""
    from ccp.server.storage.engine import schema

    if schema.is_postgres(effective.database):
        shown: str = effective.redacted()["database"]
        return shown
    return f"sqlite:///{schema.sqlite_file(effective.database).absolute()}"


def _show(effective: Settings, report: startup.StartReport, warnings: Iterable[str]) -> None:
    """Print the report: as log events with `log_format = "json"`, else as text. The port is bound, but not open yet."""
    from ccp.server import logging

    logging.configure(effective)
    if effective.log_format == "json":
        import structlog

        log = structlog.get_logger("ccp.start")
        for warning in warnings:
            log.warning("start warning", sentence=warning)
        log.info("pool starting", **report.members())
        return
    for warning in warnings:
        print_line(f"warning: {warning}", err=True)
    for line in report.lines():
        print_line(line, err=True)


def _raise_descriptor_limit(effective: Settings, given: dict[str, Any]) -> tuple[int | None, list[str]]:
    """Raise the limit on file descriptors for a worker's connections.

    Returns the limit, None if there is none, and a warning if it is too low.
    """
    from ccp.cli import descriptors

    limit = descriptors.raise_limit(descriptors.needed(effective))
    if limit is None or (possible := descriptors.connections_possible(effective, limit)) >= effective.max_connections:
        return limit, []
    given["max_connections"] = possible
    return limit, [
        f"{limit} file descriptors are too few for max_connections = {effective.max_connections}; a worker accepts "
        f"{possible} connections. Raise the hard limit (ulimit -Hn, LimitNOFILE) to {descriptors.needed(effective)}."
    ]


def _run(effective: Settings, bound: socket.socket, prepare_folder: Callable[[], None]) -> None:
    from ccp.cli import workers
    from ccp.server.http import documentation_build
    from ccp.server.http.uvicorn_options import uvicorn_options

    documentation_build.prepare(effective)
    hooks = None
    if effective.workers > 1:
        from ccp.cli.handover import PoolHooks
        from ccp.server import metrics

        assert metrics.is_shared() or effective.metrics is MetricsAccess.OFF
        hooks = PoolHooks(prepare_folder)
    workers.run(
        "ccp.server.app:create_app",
        bound,
        hooks=hooks,
        factory=True,
        host=effective.host,
        port=effective.port,
        workers=effective.workers,
        log_level="warning",
        **uvicorn_options(effective),
    )


@contextmanager
def _shared_folder(effective: Settings, given: dict[str, Any]) -> Iterator[Callable[[], None]]:
    """Create the temporary folder in which several workers share rate limits and metrics.

    The settings may name another file for the rate limits. Yields a function that creates what is missing, because
    programs exist that remove old files from temporary folders.
    """
    file = effective.rate_limit_file
    with ExitStack() as stack:
        folders: list[Path] = []
        if effective.workers > 1:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="opnc-ccp-", ignore_cleanup_errors=True)))
            folders.append(folder)
            if file is None:
                given["rate_limit_file"] = file = folder / "limits"
            if effective.metrics is not MetricsAccess.OFF:
                folders.append(folder / "metrics")
                os.environ[_METRICS_FOLDER] = str(folder / "metrics")
                stack.callback(os.environ.pop, _METRICS_FOLDER)

        def prepare(*, first: bool = False) -> None:
            from ccp.server.access.token_bucket import SharedTokenBucket

            for each in folders:
                each.mkdir(mode=0o700, exist_ok=True)
                if each.lstat().st_uid != os.geteuid():  # Another user took the name when the folder was removed.
                    raise ConfigurationError(f"The folder {each} belongs to another user.")
            if file is not None and (first or not file.exists()):
                SharedTokenBucket.prepare(file)

        prepare(first=True)
        yield prepare


def _export_environment(config: Path | None, given: dict[str, Any]) -> None:
    """Pass the configuration file, the values of the command line and this process's clock to workers.

    A parent hands its settings over to its workers; SIGUSR2 makes it read them again, and then it needs these values.
    """
    from ccp.server.runtime import clock

    clock.hand_over(datetime.now(UTC))
    if config is not None:
        os.environ["CCP_CONFIG"] = str(config.resolve())
    for name, value in given.items():
        os.environ[f"CCP_{name.upper()}"] = str(value)
        os.environ.pop(f"CCP_{name.upper()}_FILE", None)  # The other form of a secret; the option has precedence.


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
        described = Settings.model_fields.get(name)
        meaning = f"File that holds {name.removesuffix('_file')}." if described is None else described.description or ""
        if name not in SERVICES:
            yield name, "" if value is None else str(value), plain(meaning)
            continue
        for member, field in ServiceSettings.model_fields.items():
            member_value = (value or {}).get(member)
            if value or member == "url":
                text = "" if member_value is None else str(member_value)
                yield f"{name}_{member}", text, plain(meaning if member == "url" else field.description or "")
