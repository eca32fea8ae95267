"""The client certificate of a request: from the TLS connection, or from a header of a trusted proxy.

A proxy that terminates TLS passes the certificate of its client in a header. Any client can send such a header, so it
counts only from the proxies in `trusted_proxies`. The certificate of their own connection is ignored.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final
from urllib.parse import unquote_to_bytes

from cryptography.x509 import load_der_x509_certificate
from starlette.types import Scope

from ccp.errors import NotAuthenticated
from ccp.errors.codes import ErrorCode
from ccp.server.access.client_address import TrustedProxies
from ccp.x509.parse_errors import parse_errors_as

SCOPE_KEY: Final = "ccp.client_certificate"
"""Scope key: the client certificate of the connection, DER; None without one."""

_LENGTH: Final = 16_384
_UNREADABLE: Final = "The client certificate that came with the request cannot be read."
_PEM: Final = re.compile(rb"\s*-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----\s*")


class ClientCertificates:
    """Finds the client certificate of a request."""

    def __init__(self, header: str | None = None, proxies: TrustedProxies | None = None) -> None:
        """header: name of the proxies' header; None if they send none."""
        self._header = header.lower().encode("latin-1") if header else None
        self._proxies = proxies or TrustedProxies(())

    def thumbprint(self, scope: Scope) -> str | None:
        """Return x5t#S256 of the client certificate, None without one. Source: RFC 8705 clause 3.1."""
        der = self._certificate(scope)
        return None if der is None else _base64url(hashlib.sha256(der).digest())

    def thumbprint_to_bind(self, scope: Scope) -> str:
        """Return x5t#S256 for a token that will be bound to the certificate.

        Raises NotAuthenticated unless there is exactly one readable certificate: the pool must not issue an unbound
        token, or one bound to a certificate that the client cannot present.
        """
        if self._from_trusted_proxy(scope):
            values = self._values(scope)
            if len(values) > 1:
                raise NotAuthenticated(
                    f"The proxy passed on {len(values)} client certificates; exactly one is needed.",
                    code=ErrorCode.CLIENT_CERTIFICATE_INVALID,
                )
            der = parse_certificate_header(values[0]) if values else None
            if der is None and values and values[0].strip():
                raise NotAuthenticated(_UNREADABLE, code=ErrorCode.CLIENT_CERTIFICATE_INVALID)
        else:
            der = scope.get(SCOPE_KEY)
        if der is None:
            raise NotAuthenticated(
                "A client certificate is needed: access tokens of this pool are bound to one.",
                code=ErrorCode.CLIENT_CERTIFICATE_INVALID,
            )
        with parse_errors_as(lambda: NotAuthenticated(_UNREADABLE, code=ErrorCode.CLIENT_CERTIFICATE_INVALID)):
            load_der_x509_certificate(der)
        return _base64url(hashlib.sha256(der).digest())

    def _certificate(self, scope: Scope) -> bytes | None:
        if not self._from_trusted_proxy(scope):
            found: bytes | None = scope.get(SCOPE_KEY)
            return found
        values = self._values(scope)
        return parse_certificate_header(values[0]) if len(values) == 1 else None

    def _from_trusted_proxy(self, scope: Scope) -> bool:
        peer = scope["client"][0] if scope.get("client") else None
        return self._header is not None and self._proxies.contains(peer)

    def _values(self, scope: Scope) -> list[bytes]:
        return [value for name, value in scope["headers"] if name == self._header]


def parse_certificate_header(value: bytes) -> bytes | None:
    """Return the certificate in a proxy's header, DER; None if the value is not a certificate.

    value: PEM, URL-encoded (nginx: $ssl_client_escaped_cert), or DER in Base64 between colons (RFC 9440 clause 2).
    """
    if len(value) > _LENGTH:
        return None
    value = value.strip()
    if value[:1] == b":" and value[-1:] == b":" and len(value) > 2:
        text = value[1:-1]
    else:
        pem = _PEM.fullmatch(unquote_to_bytes(value))
        if pem is None:
            return None
        text = b"".join(pem[1].split())
    try:
        return base64.b64decode(text, validate=True) or None
    except binascii.Error:
        return None


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
