"""The client certificate that came with a request: of the connection itself, or told by a trusted proxy.

A proxy that ends TLS tells in a header which certificate its client has proven to hold. Anybody else could write that
header too, so it counts only from the proxies of `trusted_proxies`; where it counts, the connection's own certificate
is the proxy's and means nothing.
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
from ccp.server.access.client_address import TrustedProxies
from ccp.x509.parse_errors import parse_errors_as

SCOPE_KEY: Final = "ccp.client_certificate"
"""Where the server puts the certificate of a connection: DER, or None."""

_LENGTH: Final = 16_384
_UNREADABLE: Final = "The client certificate that came with the request cannot be read."
_PEM: Final = re.compile(rb"\s*-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----\s*")


class ClientCertificates:
    """Where to look for them."""

    def __init__(self, header: str | None = None, proxies: TrustedProxies | None = None) -> None:
        """header: in which the proxies tell; None if they do not."""
        self._header = header.lower().encode("latin-1") if header else None
        self._proxies = proxies or TrustedProxies(())

    def thumbprint(self, scope: Scope) -> str | None:
        """x5t#S256 of the client's certificate, None without one. Source: RFC 8705 clause 3.1."""
        der = self._certificate(scope)
        return None if der is None else _base64url(hashlib.sha256(der).digest())

    def thumbprint_to_bind(self, scope: Scope) -> str:
        """The same for a token that is to be bound to the certificate.

        Raises NotAuthenticated unless there is exactly one readable certificate: a token must not be issued unbound,
        or bound to a certificate that cannot be presented.
        """
        if self._told_by_proxy(scope):
            values = self._values(scope)
            if len(values) > 1:
                raise NotAuthenticated(f"The proxy passed on {len(values)} client certificates; exactly one is needed.")
            der = parse_certificate_header(values[0]) if values else None
            if der is None and values and values[0].strip():
                raise NotAuthenticated(_UNREADABLE)
        else:
            der = scope.get(SCOPE_KEY)
        if der is None:
            raise NotAuthenticated("A client certificate is needed: access tokens of this pool are bound to one.")
        with parse_errors_as(lambda: NotAuthenticated(_UNREADABLE)):
            load_der_x509_certificate(der)
        return _base64url(hashlib.sha256(der).digest())

    def _certificate(self, scope: Scope) -> bytes | None:
        if not self._told_by_proxy(scope):
            found: bytes | None = scope.get(SCOPE_KEY)
            return found
        values = self._values(scope)
        return parse_certificate_header(values[0]) if len(values) == 1 else None

    def _told_by_proxy(self, scope: Scope) -> bool:
        peer = scope["client"][0] if scope.get("client") else None
        return self._header is not None and self._proxies.contains(peer)

    def _values(self, scope: Scope) -> list[bytes]:
        return [value for name, value in scope["headers"] if name == self._header]


def parse_certificate_header(value: bytes) -> bytes | None:
    """The certificate in a proxy's header, DER; None for what is no certificate.

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


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
