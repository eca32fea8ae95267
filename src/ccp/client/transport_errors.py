"""Turns failures of the transport into the errors of the client: which step failed, and why, with host and port.

Python, anyio and httpcore wrap the causes differently, so the whole chain of an exception is examined.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from enum import IntEnum
from typing import Final
from urllib.parse import urlsplit

import httpcore

from ccp.client.errors import (
    ClientCertificateError,
    ExpiredCertificateError,
    NameMismatchError,
    NameResolutionError,
    NoResponseError,
    PlainHTTPError,
    RefusedConnectionError,
    TimedOutError,
    TLSError,
    TLSRequiredError,
    UntrustedCertificateError,
)
from ccp.client.responses import HttpResponse

_MAX_CAUSES: Final = 32
_PORTS: Final = {"http": 80, "https": 443}
# Errors before anything is sent. After any other error the pool may have received the request.
_UNSENT: Final = (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout, httpcore.ProxyError)
# Codes of OpenSSL's verification: X509_V_ERR_CERT_NOT_YET_VALID, …_HAS_EXPIRED, …_HOSTNAME_MISMATCH and
# …_IP_ADDRESS_MISMATCH.
_NOT_YET_VALID, _EXPIRED, _MISMATCHES = 9, 10, (62, 64)
# OpenSSL's reasons for a first record that is not one of TLS.
_NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"})
# Alerts by which a server rejects the client's certificate, or its absence. Source: RFC 8446 clause 6.2.
_CLIENT_CERTIFICATE: Final = re.compile(
    "ALERT_(CERTIFICATE_REQUIRED|BAD_CERTIFICATE|UNKNOWN_CA|CERTIFICATE_(EXPIRED|REVOKED|UNKNOWN)|"
    "UNSUPPORTED_CERTIFICATE|ACCESS_DENIED)"
)
# How h11 quotes the beginning of a TLS alert or handshake record in the place of a status line.
_TLS_RECORD: Final = re.compile(r"illegal status line: .*b['\"]\\x1[56]\\x03")
# The 400 of common servers on a port for HTTPS (nginx, Go, Apache httpd, Tomcat).
_HTTPS_PORT: Final = re.compile(
    rb"plain HTTP request was sent to HTTPS port|HTTP request to an HTTPS server|speaking plain HTTP to an SSL-enabled|"
    rb"combination of host and port requires TLS",
    re.IGNORECASE,
)
TLS_RECORDS: Final = (b"\x15\x03", b"\x16\x03")
"""The first bytes of a server's alert or handshake. Source: RFC 8446 clause 5.1."""


class Step(IntEnum):
    """How far a request has come."""

    WAITING = 0
    CONNECTING = 1
    HANDSHAKE = 2
    SENT = 3


_STEPS: Final = {
    "connect_tcp.started": Step.CONNECTING,
    "start_tls.started": Step.HANDSHAKE,
    "send_request_headers.started": Step.SENT,
}


class Progress:
    """Follows one request by httpcore's trace events. proxy: its URL."""

    def __init__(self, url: str, proxy: str | None) -> None:
        self._url = url
        self._proxy = proxy
        self.step = Step.WAITING

    @property
    def url(self) -> str:
        """Of the server that this step talks to. Before the first header is sent, it is the proxy."""
        connecting = self.step in (Step.CONNECTING, Step.HANDSHAKE)
        return self._proxy if connecting and self._proxy is not None else self._url

    def trace(self, event: str, info: object) -> None:
        """Take an event such as "connection.connect_tcp.started"."""
        self.step = max(self.step, _STEPS.get(event.partition(".")[2], Step.WAITING))

    async def trace_async(self, event: str, info: object) -> None:
        """As `trace`, for an asynchronous connection pool."""
        self.trace(event, info)


def place_of(url: str) -> tuple[str, int, str]:
    """Return host and port of a URL, and both as text."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
    return host, port, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_plain_http(url: str) -> bool:
    """Whether requests to a URL are sent without TLS."""
    return urlsplit(url).scheme == "http"


def timed_out(url: str, step: Step) -> NoResponseError:
    """The error for a request without response in time. step: how far it came."""
    host, port, place = place_of(url)
    reason = {
        Step.CONNECTING: f"No connection to {place} was established in time.",
        Step.HANDSHAKE: f"{place} did not complete the TLS handshake in time; it may speak plain HTTP.",
    }.get(step, f"{place} did not respond in time.")
    return TimedOutError(reason, outcome_unknown=step is Step.SENT, host=host, port=port)


def tls_required(url: str) -> NoResponseError:
    """The error for plain HTTP on a port that speaks TLS. The server cannot have read the request."""
    host, port, place = place_of(url)
    return TLSRequiredError(f"{place} speaks TLS; use https.", outcome_unknown=False, host=host, port=port)


def wants_tls(url: str, response: HttpResponse) -> bool:
    """Whether a response is that of a port for HTTPS to a request without TLS."""
    return response.status == 400 and is_plain_http(url) and _HTTPS_PORT.search(response.body[:4096]) is not None


def no_response(url: str, exc: Exception, step: Step) -> NoResponseError:
    """The error for a failure of the transport. exc: of httpcore or the standard library."""
    if isinstance(exc, httpcore.TimeoutException):
        return timed_out(url, Step.CONNECTING if step is Step.SENT and isinstance(exc, _UNSENT) else step)
    host, port, place = place_of(url)
    unknown = step is Step.SENT and not isinstance(exc, _UNSENT)
    kind: type[NoResponseError] = NoResponseError
    reason = f"{place} closed the connection without a response." if unknown else f"{place} cannot be reached."
    for cause in _causes(exc):
        match cause:
            case ssl.SSLCertVerificationError():
                kind, reason, unknown = *_certificate(cause, place), False
            case ssl.SSLError() if cause.reason in _NOT_TLS:
                kind, reason = PlainHTTPError, f"{place} does not speak TLS; it may speak plain HTTP."
            case ssl.SSLError() if cause.reason is not None and _CLIENT_CERTIFICATE.search(cause.reason):
                kind, unknown = ClientCertificateError, False
                reason = f"{place} does not accept the client's certificate, or requires one ({cause.reason})."
            case ssl.SSLError() if step is Step.HANDSHAKE:
                kind, reason = TLSError, f"The TLS handshake with {place} failed ({_tls_reason(cause)})."
            case socket.gaierror():
                kind, reason = NameResolutionError, _name_problem(cause, host)
            case ConnectionRefusedError():
                kind, reason = RefusedConnectionError, f"{place} refuses the connection."
            case httpcore.RemoteProtocolError() if _TLS_RECORD.search(str(cause)):
                return tls_required(url)
            case TimeoutError() if not unknown:
                kind, reason = TimedOutError, f"No connection to {place} was established in time."
            case _:
                continue
        break
    else:
        if step is Step.HANDSHAKE:
            kind, reason = TLSError, f"{place} closed the connection during the TLS handshake; it may not speak TLS."
    return kind(reason, outcome_unknown=unknown, host=host, port=port)


def _certificate(cause: ssl.SSLCertVerificationError, place: str) -> tuple[type[NoResponseError], str]:
    if cause.verify_code == _EXPIRED:
        return ExpiredCertificateError, f"The certificate of {place} has expired."
    if cause.verify_code == _NOT_YET_VALID:
        return ExpiredCertificateError, f"The certificate of {place} is not valid yet."
    problem = cause.verify_message.rstrip(".")
    if cause.verify_code in _MISMATCHES:
        return NameMismatchError, f"The certificate of {place} is for another name ({problem})."
    return UntrustedCertificateError, f"The certificate of {place} is not trusted ({problem})."


def _tls_reason(cause: ssl.SSLError) -> str:
    return cause.reason or str(cause.strerror or "no reason given")


def _name_problem(cause: socket.gaierror, host: str) -> str:
    if cause.errno == socket.EAI_AGAIN:
        return f"The name {host} cannot be resolved now: the name server does not answer."
    return f"The name {host} is not found."


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what caused it, groups included."""
    pending: list[BaseException | None] = [exc]
    for _ in range(_MAX_CAUSES):
        if not pending:
            return
        found = pending.pop(0)
        if found is None:
            continue
        yield found
        if isinstance(found, BaseExceptionGroup):
            pending.extend(found.exceptions)
        pending.append(found.__cause__ or found.__context__)
