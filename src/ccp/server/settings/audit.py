"""Settings of the stream of the audit trail."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr

from ccp.errors import ConfigurationError
from ccp.server.settings.services import is_protected

_NEEDED: Final = {
    "file": ("audit_stream_file",),
    "syslog": ("audit_stream_syslog",),
    "webhook": ("audit_stream_url", "audit_stream_secret"),
}


class AuditSettings(BaseModel):
    """Where the audit trail is streamed to."""

    audit_stream: Literal["file", "syslog", "webhook"] | None = Field(
        None,
        description="Send each row of the audit trail to a file (`file`), a syslog receiver (`syslog`) or a webhook "
        "(`webhook`); see [Stream](audit.md#stream).",
    )
    audit_stream_file: Path | None = Field(
        None, description="`file`: file to append JSON lines to; created with mode 0600."
    )
    audit_stream_syslog: str | None = Field(
        None,
        description="`syslog`: receiver of RFC 5424 messages: `tls://HOST:PORT`, `tcp://HOST:PORT` or "
        "`unix:///SOCKET` (a stream socket); default ports 6514 and 601.",
    )
    audit_stream_url: str | None = Field(
        None, description="`webhook`: https URL; http is accepted on this machine only."
    )
    audit_stream_secret: Annotated[SecretStr, Field(min_length=16)] | None = Field(
        None, description="`webhook`: key of the HMAC-SHA256 over the body, in `X-Operator-Signature`."
    )
    audit_stream_ca: Path | None = Field(
        None, description="CA certificates of the receiver (TLS), PEM, instead of those of the system."
    )
    audit_stream_tls_cert: Path | None = Field(None, description="Client certificate chain for the receiver, PEM.")
    audit_stream_tls_key: Path | None = Field(None, description="Private key for `audit_stream_tls_cert`, PEM.")


def check_audit_stream(settings: AuditSettings) -> None:
    """Check that the settings of the stream belong together. Raises ConfigurationError."""
    kind = settings.audit_stream
    if kind is None:
        return
    if missing := [name for name in _NEEDED[kind] if getattr(settings, name) is None]:
        raise ConfigurationError(f"audit_stream = {kind} needs {' and '.join(missing)}.")
    if (settings.audit_stream_tls_cert is None) != (settings.audit_stream_tls_key is None):
        raise ConfigurationError("audit_stream_tls_cert and audit_stream_tls_key belong together.")
    try:
        if settings.audit_stream_syslog is not None:
            syslog_address(settings.audit_stream_syslog)
        if settings.audit_stream_url is not None:
            _check_url(settings.audit_stream_url)
    except ValueError as exc:
        raise ConfigurationError(str(exc)) from exc


def syslog_address(text: str) -> tuple[str, str, int]:
    """Return scheme, host or path of the socket, and port (0 for a socket). Raises ValueError.

    Source of the default ports: RFC 5425 clause 4.1 (tls), RFC 6587 clause 1 (tcp).
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as exc:
        raise ValueError(f"audit_stream_syslog: {exc}.") from exc
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
        return "unix", parts.path, 0
    if parts.scheme in ("tls", "tcp") and parts.hostname and parts.path in ("", "/") and parts.username is None:
        return parts.scheme, parts.hostname, port or (6514 if parts.scheme == "tls" else 601)
    raise ValueError("audit_stream_syslog must be tls://HOST:PORT, tcp://HOST:PORT or unix:///SOCKET.")


def _check_url(url: str) -> None:
    try:
        protected = is_protected(url)
    except ValueError as exc:
        raise ValueError("audit_stream_url must be an https URL without credentials.") from exc
    if not protected:
        raise ValueError("audit_stream_url must be an https URL; http is accepted on this machine only.")
