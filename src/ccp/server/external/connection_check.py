"""Diagnosis of connections to external services: name, address, TLS, and what the operator can do about a failure."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import httpcore

from ccp.server.external.egress import EgressBackend
from ccp.server.external.resolver import ResolutionError
from ccp.server.external.service_connection import ServiceConnection
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.x509.http_urls import origin_of

TIMEOUT: Final = 5.0
"""Seconds for each step."""
_ALERT_TIMEOUT: Final = 0.3
# OpenSSL's X509_V_ERR_… (x509_vfy.h).
_EXPIRED: Final = frozenset({9, 10})
_UNTRUSTED: Final = frozenset({2, 18, 19, 20, 21, 26})
_WRONG_NAME: Final = frozenset({62, 64})
_CLIENT_CERTIFICATE: Final = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE", "BAD_CERTIFICATE", "UNKNOWN_CA")
_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a check. name: dns, connect, tls, token or call. detail: what was found, or what failed."""

    name: str
    ok: bool
    detail: str


class CheckFailure(Exception):
    """A step failed. advice: one sentence that says what the operator can do."""

    def __init__(self, step: str, detail: str, advice: str) -> None:
        super().__init__(detail)
        self.step = Step(step, False, detail)
        self.advice = advice


async def check_connection(connection: ServiceConnection, prefix: str, backend: EgressBackend) -> list[Step]:
    """Resolve the service's host, connect to it, and make a TLS handshake.

    prefix: of its settings. Raises CheckFailure.
    """
    scheme, host, port = origin_of(connection.url)
    try:
        addresses = await backend.check(host)
    except ResolutionError as exc:
        advice = (
            f"Correct the host name in {prefix}_url."
            if exc.missing
            else "Check the name server of this machine; it gives no answer for the host in time."
        )
        raise CheckFailure("dns", str(exc), advice) from exc
    steps = [Step("dns", True, f"{host}: {', '.join(addresses)}")]
    try:
        stream = await backend.connect_tcp(host, port, TIMEOUT)
    except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
        raise connection_failure(exc, prefix, f"{host}:{port}", bool(connection.tls.cert)) from exc
    try:
        steps.append(Step("connect", True, f"port {port}"))
        if scheme == "https":
            context = await BlockingCalls("loading of certificates", max_threads=1, timeout=TIMEOUT).run(
                connection.tls.context
            )
            try:
                stream = await stream.start_tls(context, host, TIMEOUT)
                await _expect_silence(stream)
            except (httpcore.NetworkError, httpcore.ConnectTimeout) as exc:
                raise connection_failure(exc, prefix, f"{host}:{port}", bool(connection.tls.cert)) from exc
            steps.append(Step("tls", True, _describe(stream.get_extra_info("ssl_object"))))
    finally:
        with contextlib.suppress(Exception):  # The server may have closed the connection.
            async with asyncio.timeout(TIMEOUT):
                await stream.aclose()
    return steps


async def _expect_silence(stream: httpcore.AsyncNetworkStream) -> None:
    """Wait for the alert of a server that refuses our certificate, which TLS 1.3 sends after the handshake.

    Raises httpcore.ReadError. Source: RFC 8446 clause 4.4.2.4.
    """
    with contextlib.suppress(httpcore.ReadTimeout):
        if not await stream.read(1, _ALERT_TIMEOUT):
            raise httpcore.ReadError("The server closed the connection after the TLS handshake.")


def connection_failure(exc: BaseException, prefix: str, place: str, has_certificate: bool) -> CheckFailure:
    """The step that failed, by the causes of an error. place: host and port. has_certificate: one of ours."""
    for cause in _causes(exc):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _verification_failure(cause, prefix, place)
        if isinstance(cause, ssl.SSLError):
            return _tls_failure(cause, prefix, place, has_certificate)
        if isinstance(cause, ConnectionRefusedError):
            advice = f"Check the port in {prefix}_url, and whether the service runs."
            return CheckFailure("connect", f"{place} refuses the connection.", advice)
        if isinstance(cause, TimeoutError | httpcore.TimeoutException):
            advice = "Check firewalls and routes between this machine and the service."
            return CheckFailure("connect", f"{place} does not answer in time.", advice)
    text = next((str(cause) for cause in _causes(exc) if isinstance(cause, OSError) and str(cause)), str(exc))
    advice = "Ask the service's operator why the connection is closed, and check proxies and firewalls between."
    return CheckFailure("connect", f"{place}: {text or 'the connection was closed'}", advice)


def _verification_failure(exc: ssl.SSLCertVerificationError, prefix: str, place: str) -> CheckFailure:
    code = exc.verify_code
    detail = f"{place}: {exc.verify_message}"
    if code in _UNTRUSTED:
        return CheckFailure("tls", detail, f"Set {prefix}_ca to the CA of the service's certificate, if that is right.")
    if code in _EXPIRED:
        return CheckFailure("tls", detail, "Ask the service's operator to renew its certificate; check the clock here.")
    if code in _WRONG_NAME:
        advice = f"Write the host in {prefix}_url as the service's certificate names it."
        return CheckFailure("tls", detail, advice)
    return CheckFailure("tls", detail, "Ask the service's operator for a certificate that can be verified.")


def _tls_failure(exc: ssl.SSLError, prefix: str, place: str, has_certificate: bool) -> CheckFailure:
    reason = exc.reason or ""
    if any(word in reason for word in _NOT_TLS):
        detail = f"{place} does not speak TLS on this port."
        return CheckFailure("tls", detail, f"Check the port in {prefix}_url; plain HTTP needs an http URL.")
    detail = f"{place}: {reason.replace('_', ' ').lower() or exc}"
    if any(word in reason for word in _CLIENT_CERTIFICATE):
        advice = (
            f"Ask the service's operator whether it knows the CA of {prefix}_tls_cert; it refuses the certificate."
            if has_certificate
            else f"Set {prefix}_tls_cert and {prefix}_tls_key; the service seems to require a client certificate."
        )
        return CheckFailure("tls", detail, advice)
    return CheckFailure("tls", detail, "Ask the service's operator which versions and ciphers of TLS it accepts.")


def _describe(tls: ssl.SSLObject) -> str:
    certificate: dict[str, Any] = tls.getpeercert() or {}
    expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
    return f"{tls.version()}, issued by {_name(certificate.get('issuer', ()))}, expires {expires:%Y-%m-%d}"


def _name(parts: Any) -> str:
    """A distinguished name as getpeercert has it: a tuple of relative names, each a tuple of pairs."""
    short = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}
    pairs = [pair for relative in parts for pair in relative]
    return ", ".join(f"{short.get(name, name)}={value}" for name, value in pairs) or "an issuer without a name"


def _causes(exc: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = exc
    for _ in range(10):
        if current is None:
            return
        yield current
        current = current.__cause__ or current.__context__
