"""TLS to a PostgreSQL server: the CAs that its certificate is verified against.

`sslmode=verify-full` without `sslrootcert` uses the CAs of the system, as `sslrootcert=system` does. libpq and asyncpg
require a file, which does not fit a server with a certificate of a public CA.
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
    """Arguments for `asyncpg.connect`: a TLS context if the CAs of the system are used, otherwise none.

    Raises ConfigurationError.
    """
    return {"ssl": _context(url)} if uses_system_cas(url) else {}


def uses_system_cas(url: str) -> bool:
    """Whether the server's certificate is verified against the CAs of the system. Raises ConfigurationError."""
    mode = _option(url, "sslmode", "PGSSLMODE")
    root = _option(url, "sslrootcert", "PGSSLROOTCERT")
    if root == _SYSTEM:
        if mode not in (None, "verify-full"):
            raise ConfigurationError("sslrootcert=system goes with sslmode=verify-full.")
        return True
    mode = mode and mode.replace("_", "-")  # The driver accepts both.
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
        # It would accept any server with a certificate of any public CA.
        raise ConfigurationError(
            "sslmode=verify-ca needs sslrootcert=FILE; with the CAs of the system only sslmode=verify-full is safe."
        )
    return True


def _context(url: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    certificate = _option(url, "sslcert", "PGSSLCERT")
    if certificate is not None:
        key, password = _option(url, "sslkey", "PGSSLKEY"), _option(url, "sslpassword", "PGSSLPASSWORD")
        try:
            context.load_cert_chain(certificate, key, password)
        except OSError as exc:  # SSLError is a subclass.
            raise ConfigurationError(f"The client certificate {certificate} for the database cannot be used.") from exc
    return context


def _option(url: str, parameter: str, variable: str) -> str | None:
    values = parse_qs(urlsplit(url).query).get(parameter)
    return values[-1] if values else os.environ.get(variable)
