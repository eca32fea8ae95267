"""What `ccp serve` checks and reports when it starts: the port, the TLS certificate, and what is in the database."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography import x509

from ccp.errors import ConfigurationError
from ccp.server.settings import Settings
from ccp.server.settings.secret_files import readable_by_others

_EXPIRES_SOON: Final = timedelta(days=30)


def bind(host: str, port: int) -> socket.socket:
    """Bind the port, without listening. port: 0 for any free one. Raises ConfigurationError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # Clients of a name such as localhost that has addresses of both kinds try IPv4 too, but not always IPv6.
        family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        bound = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise ConfigurationError(f"The pool cannot listen on {host}: {exc.strerror}.") from exc
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as exc:
        bound.close()
        place = f"port {port} of {host}"
        if exc.errno == errno.EADDRINUSE:
            raise ConfigurationError(f"Another process listens on {place}. Choose another port with --port.") from exc
        if exc.errno == errno.EACCES:
            raise ConfigurationError(f"This user may not listen on {place}; ports below 1024 belong to root.") from exc
        raise ConfigurationError(f"The pool cannot listen on {place}: {exc.strerror}.") from exc
    bound.set_inheritable(True)
    return bound


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """The certificate of the server: the end of its validity, and its names."""

    not_after: datetime
    names: tuple[str, ...]
    """DNS names and addresses of the extension SubjectAltName."""

    def is_for(self, host: str) -> bool:
        """Whether a client that connects to a host accepts the certificate. Source: RFC 9525 clause 6.3."""
        host = host.lower().rstrip(".")
        parent = host.partition(".")[2]
        return any(name == host or (name.startswith("*.") and name[2:] == parent) for name in self.names)


def check_tls(config: Settings) -> ServerCertificate | None:
    """Load the TLS files as a worker does. Returns None without TLS.

    Raises ConfigurationError for files that cannot be used, a key of another certificate, and a certificate that is not
    valid now.
    """
    if config.tls_cert is None:
        return None
    from ccp.server.http.tls import failure_of, usable_certificate
    from ccp.server.runtime.start_files import file_for_openssl

    try:
        leaf = usable_certificate(config.tls_cert, config.tls_key)
    except (OSError, ValueError) as exc:  # SSLError is an OSError.
        raise ConfigurationError(
            f"The TLS certificate {config.tls_cert} and key {config.tls_key} cannot be used: {failure_of(exc)}."
        ) from exc
    if config.tls_client_ca is not None:
        try:
            with file_for_openssl(config.tls_client_ca) as name:
                ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_verify_locations(name)
        except OSError as exc:
            raise ConfigurationError(
                f"The CAs of client certificates {config.tls_client_ca} cannot be used: {failure_of(exc)}."
            ) from exc
    return ServerCertificate(leaf.not_valid_after_utc, tuple(_names(leaf)))


def check_documentation(config: Settings) -> None:
    """Check that the directory of the documentation has a site. Raises ConfigurationError."""
    directory = config.documentation_directory
    if config.documentation and directory is not None and not (directory / "index.html").is_file():
        raise ConfigurationError(f"documentation_directory: {directory} has no index.html; run `ccp docs build` first.")


def check_worker_files(config: Settings) -> None:
    """Read every file that a worker reads at its start, and check that it can be used. Raises ConfigurationError."""
    from ccp.server.access.trusted_issuers import check_key_files
    from ccp.server.external import services
    from ccp.server.storage.engine.secret_codec import SecretCodec

    check_tls(config)
    check_key_files(config.issuers)
    SecretCodec(config.secrets_key_file)
    services.check(config)


def check_audit_stream(config: Settings) -> Iterator[str]:
    """Check the TLS files of the audit stream's receiver. Yields sentences about its file, which may be mended later.

    Raises ConfigurationError for TLS files that cannot be used.
    """
    if config.audit_stream is None:
        return
    from ccp.server.external.client_tls import ClientTLS
    from ccp.server.runtime.private_files import refusal

    ClientTLS(config.audit_stream_ca, config.audit_stream_tls_cert, config.audit_stream_tls_key).check("audit_stream")
    file = config.audit_stream_file
    if config.audit_stream != "file" or file is None:
        return
    folder = file.parent
    if not folder.is_dir():
        reason = f"the folder {folder} does not exist"
    elif (found := refusal(file)) is not None:
        reason = found
    elif file.exists() and not os.access(file, os.R_OK | os.W_OK):
        reason = "this user may not read and write it"
    elif not file.exists() and not os.access(folder, os.W_OK | os.X_OK):
        reason = f"this user may not create files in {folder}"
    else:
        return
    yield f"The audit trail waits in the database: audit_stream_file {file} cannot be written: {reason}."


def _names(leaf: x509.Certificate) -> Iterator[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return
    yield from (name.lower() for name in names.get_values_for_type(x509.DNSName))
    yield from (str(address) for address in names.get_values_for_type(x509.IPAddress))


@dataclass(frozen=True, slots=True)
class StartReport:
    """What the operator should know about a pool that starts."""

    url: str
    address: str
    """Address and port that are bound."""
    settings: str
    """The configuration file; "none" without one."""
    database: str
    new_database: bool
    workers: int
    file_descriptors: int | None
    """Limit of each worker; None for no limit."""
    anchors: dict[str, int] = field(default_factory=dict)
    """Number of trusted certificates by role."""
    parties: int = 0
    peers: int = 0
    tls_valid_until: str | None = None
    console: str | None = None
    """Address of the operator's console; None where it is off."""
    documentation: str | None = None
    """Address of the documentation; None without one."""

    def members(self) -> dict[str, Any]:
        """The members of the log event."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The report as text."""
        descriptors = "any number of" if self.file_descriptors is None else self.file_descriptors
        made = "new, empty database" if self.new_database else "database"
        yield f"opnc-ccp on {self.url} ({made} {self.database}, {descriptors} file descriptors per worker)"
        tls = f"TLS certificate valid until {self.tls_valid_until}" if self.tls_valid_until else "without TLS"
        yield f"  listening on {self.address}, {tls}; {self.workers} worker(s); settings: {self.settings}"
        anchors = ", ".join(f"{count} {role}" for role, count in sorted(self.anchors.items())) or "none"
        yield f"  trusted certificates: {anchors}; parties: {self.parties}; peers: {self.peers}"
        if self.console is not None:
            yield f"  console: {self.console}"
        if self.documentation is not None:
            yield f"  documentation: {self.documentation}"


def warnings(config: Settings, report: StartReport, tls: ServerCertificate | None, now: datetime) -> Iterator[str]:
    """Sentences about what is probably not intended."""
    if report.new_database:
        yield (
            f"The database {report.database} is new and empty. If the pool has data elsewhere, stop it and correct the "
            "setting database."
        )
    elif not report.anchors:
        yield "No certificate is trusted, so every message is refused. Add roots with `ccp trust add`."
    if not report.parties and not config.issuers:
        yield "There are no parties, so every request is refused. Add them with `ccp party add`."
    if "KUBERNETES_SERVICE_HOST" not in os.environ:  # Secret volumes have the mode 0644 there.
        yield from readable_by_others(config.secret_files)
    yield from _url_warnings(config, tls)
    if tls is not None and tls.not_after - now < _EXPIRES_SOON:
        yield f"The TLS certificate expires on {tls.not_after:%Y-%m-%d %H:%M} UTC."


def _url_warnings(config: Settings, tls: ServerCertificate | None) -> Iterator[str]:
    beyond = not _is_loopback(config.host)
    if beyond and tls is None:
        yield (
            f"The pool listens on {config.host} without TLS: tokens and contracts are readable on the network unless a "
            "proxy on a trusted network terminates TLS."
        )
    if config.base_url is None:
        if beyond:
            yield f"base_url is not set: tokens are issued for {config.public_url}. Set it to the public URL."
        return
    url = urlsplit(config.base_url)
    if tls is not None and url.scheme == "http":
        yield f"base_url is {config.base_url}, but the pool serves https."
    if tls is not None and url.hostname and not tls.is_for(url.hostname):
        yield (
            f"The TLS certificate is not for {url.hostname}, the host of base_url; it is for {_listed(tls.names)}. "
            "Clients that connect directly refuse it."
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "no name"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
