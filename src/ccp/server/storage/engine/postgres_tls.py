"""TLS to a PostgreSQL server: which CAs vouch for its certificate.

`sslmode=verify-full` without `sslrootcert` takes the CAs of the system, as `sslrootcert=system` does. libpq and asyncpg
demand a file there, which does not help where the server has a certificate of a public CA.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from ccp.errors import ConfigurationError

_DEFAULT_FILE: Final = "~/.postgresql/root.crt"
_SYSTEM: Final = "system"
_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def options(url: str) -> dict[str, Any]:
    """More arguments for `asyncpg.connect`: a TLS context where the CAs of the system count, else none.

    Raises ConfigurationError.
    """
    return {"ssl": _context(url)} if uses_system_cas(url) else {}


def uses_system_cas(url: str) -> bool:
    """Whether the server's certificate is verified against the CAs of the system. Raises ConfigurationError."""
    mode = _said(url, "sslmode", "PGSSLMODE")
    root = _said(url, "sslrootcert", "PGSSLROOTCERT")
    if root == _SYSTEM:
        if mode not in (None, "verify-full"):
            raise ConfigurationError("sslrootcert=system goes with sslmode=verify-full.")
        return True
    mode = mode and mode.replace("_", "-")  # The driver takes either.
    if mode and mode not in _MODES:
        raise ConfigurationError(f"sslmode is one of {', '.join(_MODES)}.")
    if mode not in ("verify-ca", "verify-full"):
        return False
    if root is not None:
        if not Path(root).is_file():
            raise ConfigurationError(f"There is no file {root} with the CAs of the database server's certificate.")
        return False
    if Path(_DEFAULT_FILE).expanduser().exists():
        return False
    if mode == "verify-ca":
        # Any server with a certificate of any public CA would do.
        raise ConfigurationError(
            "sslmode=verify-ca needs sslrootcert=FILE; with the CAs of the system only sslmode=verify-full is safe."
        )
    return True


def _context(url: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    certificate = _said(url, "sslcert", "PGSSLCERT")
    if certificate is not None:
        key, password = _said(url, "sslkey", "PGSSLKEY"), _said(url, "sslpassword", "PGSSLPASSWORD")
        try:
            context.load_cert_chain(certificate, key, password)
        except OSError as exc:  # An SSLError is one.
            raise ConfigurationError(f"The client certificate {certificate} for the database cannot be used.") from exc
    return context


def _said(url: str, parameter: str, variable: str) -> str | None:
    values = parse_qs(urlsplit(url).query).get(parameter)
    return values[-1] if values else os.environ.get(variable)
