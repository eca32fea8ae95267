"""Authenticated HTTP to an external service, as its settings describe it.

    connection = ServiceConnection(outbound, config.est, "EST server")
    response = await connection.request("GET", "/cacerts", timeout=5.0, max_bytes=65_536)

Every request presents the service's credentials: an access token, a client certificate, or both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from ccp.errors import ConfigurationError
from ccp.server.external.access_tokens import AccessTokens, read_secret
from ccp.server.external.client_tls import ClientTLS
from ccp.server.external.outbound import HttpResponse, OutboundClient, OutboundError, host_of
from ccp.server.settings.services import ServiceSettings

_MIN_HIDDEN: Final = 8
"""Characters. A shorter token is no secret, and may be part of any word."""


class ServiceConnection:
    """HTTP to one external service, with its credentials. Belongs to one event loop."""

    def __init__(
        self,
        outbound: OutboundClient,
        service: ServiceSettings,
        name: str,
        clock: Callable[[], float] = time.monotonic,
        prefix: str = "",
    ) -> None:
        """name: the service in messages. clock: monotonic seconds. prefix: of its settings, for metrics."""
        self._prefix = prefix
        self._outbound = outbound
        self.settings: Final = service
        self.name: Final = name
        self.url: Final = service.url
        self.tokens: Final = AccessTokens.of(service, outbound, name, clock)
        self.tls: Final = ClientTLS(service.ca, service.tls_cert, service.tls_key)

    async def request(
        self,
        method: str,
        path: str,
        *,
        timeout: float,  # noqa: ASYNC109  covers the token and a repetition too
        max_bytes: int,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
    ) -> HttpResponse:
        """Send a request and return the response, whatever its status. path: below the service's URL.

        A 401 is answered once with a new token, if there is one; a service that answers 401 has done nothing. Where the
        body repeats the token, as some services explain a refusal, it has `(token)` in its place.
        timeout: seconds for all of it. Raises OutboundError, TokenError.
        """
        token_endpoint = f"The token endpoint of the {self.name}"
        waited_for = token_endpoint
        try:
            async with asyncio.timeout(timeout):
                token = await self.tokens.get()
                waited_for = host_of(self.url)
                response = await self._send(method, path, token, timeout, max_bytes, headers, content)
                if response.status != 401 or token is None:
                    return response
                waited_for = token_endpoint
                renewed = await self.tokens.get(rejected=token)
                if renewed is None or renewed == token:
                    return response
                waited_for = host_of(self.url)
                return await self._send(method, path, renewed, timeout, max_bytes, headers, content)
        except TimeoutError as exc:
            raise OutboundError(f"{waited_for} did not answer within {timeout:g} s.") from exc

    async def _send(
        self,
        method: str,
        path: str,
        token: str | None,
        timeout: float,  # noqa: ASYNC109
        max_bytes: int,
        headers: Mapping[str, str] | None,
        content: bytes,
    ) -> HttpResponse:
        authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
        response = await self._outbound.request(
            method,
            self.url + path,
            block_private=False,
            headers={**(headers or {}), **authorization},
            content=content,
            timeout=timeout,
            max_bytes=max_bytes,
            tls=self.tls,
            service=self._prefix,
        )
        return response if token is None else _without_token(response, token)


def _without_token(response: HttpResponse, token: str) -> HttpResponse:
    """Hide a token in a body whose sentences reach logs, commands and partners, also in JSON with escaped slashes."""
    body = response.body
    if len(token) >= _MIN_HIDDEN:
        for form in {token, token.replace("/", "\\/")}:
            body = body.replace(form.encode(), b"(token)")
    return response if body is response.body else replace(response, body=body)


def check_files(services: Mapping[str, ServiceSettings]) -> None:
    """Check that the files that the services' settings name can be used. Raises ConfigurationError."""
    for prefix, service in services.items():
        ClientTLS(service.ca, service.tls_cert, service.tls_key).check(prefix)
        for member in ("token_file", "client_secret_file"):
            path = getattr(service, member)
            try:
                if path is not None:
                    read_secret(path)
            except (OSError, ValueError) as exc:
                reason = exc.strerror if isinstance(exc, OSError) else exc
                raise ConfigurationError(f"{prefix}_{member} ({path}) cannot be used: {reason}.") from exc
