"""TLS contexts of calls to external services: private CAs and client certificates. Pure but for reading the files."""

from __future__ import annotations

import ssl
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ccp.errors import ConfigurationError
from ccp.server.runtime import start_files


@dataclass(frozen=True, slots=True)
class ClientTLS:
    """Which CAs to trust, and which client certificate to present. Equal values share connections.

    ca: PEM file of CA certificates; None: the system's CAs. with_system: trust the system's CAs besides those of `ca`.
    cert, key: PEM files of the client certificate with its chain, and of its key; both or none.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    with_system: bool = False

    def context(self) -> ssl.SSLContext:
        """Read the files and return a context that verifies the server and its name. Raises OSError (SSLError too)."""
        if self.ca is None or self.with_system:
            context = ssl.create_default_context()
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # Verifies chain and name, and trusts no CA yet.
            context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.ca is not None:
            with start_files.file_for_openssl(self.ca) as ca:
                context.load_verify_locations(ca)
        if self.cert is not None:
            # A password prompt on the terminal would block the server.
            with ExitStack() as files:
                key = None if self.key is None else files.enter_context(start_files.file_for_openssl(self.key))
                cert = files.enter_context(start_files.file_for_openssl(self.cert))
                context.load_cert_chain(cert, key, password=lambda: "")
        return context

    def check(self, prefix: str) -> None:
        """Check that the files can be used. prefix: of the settings' names. Raises ConfigurationError."""
        if self.ca is not None:
            self._try(ClientTLS(ca=self.ca), f"{prefix}_ca ({self.ca}) cannot be used")
        if self.cert is not None:
            names = f"{prefix}_tls_cert ({self.cert}) and {prefix}_tls_key ({self.key}) cannot be used together"
            self._try(ClientTLS(cert=self.cert, key=self.key), names)

    @staticmethod
    def _try(part: ClientTLS, problem: str) -> None:
        try:
            context = part.context()
        except (OSError, ValueError) as exc:
            reason = (exc.strerror if isinstance(exc, OSError) and not isinstance(exc, ssl.SSLError) else None) or str(
                exc
            )
            raise ConfigurationError(f"{problem}: {reason}.") from exc
        if part.ca is not None and not context.get_ca_certs():
            raise ConfigurationError(f"{problem}: it holds no CA certificate.")
