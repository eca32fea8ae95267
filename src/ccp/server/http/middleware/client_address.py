"""Middleware that determines the client's address and enforces its rate limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ccp.errors import TooManyRequests
from ccp.server.access.client_address import RemoteAddress
from ccp.server.access.rate_limits import RateLimits
from ccp.server.http import errors
from ccp.server.http.middleware.tracing import trace_of

_log = structlog.get_logger("ccp.client_address")
_KEY: Final = "ccp.client"
_FORWARDED: Final = 256
_PROBED: Final = frozenset({"/metrics"})


def client_of(scope: Scope) -> RemoteAddress:
    """Return the client of a request; without this middleware, the peer of its connection."""
    known: RemoteAddress | None = scope.get(_KEY)
    if known is not None:
        return known
    peer = scope.get("client")
    return RemoteAddress(peer[0] if peer else None, None)


class ClientAddressMiddleware:
    """ASGI middleware, inside `TraceMiddleware`."""

    def __init__(self, app: ASGIApp, limits: RateLimits, count_problem: Callable[[str], None]) -> None:
        """count_problem: called with "untrusted" or "missing", see `Metrics.forwarded_problem`."""
        self._app = app
        self._limits = limits
        self._count_problem = count_problem
        self._untrusted_logged = False
        self._missing_logged = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        peer = scope["client"][0] if scope.get("client") else None
        proxies, forwarded = self._limits.proxies, _forwarded(scope)
        if forwarded and not proxies.contains(peer):
            self._count_problem("untrusted")
            self._warn_untrusted_once(peer)
            forwarded = ""
        scope[_KEY] = client = proxies.resolve(peer, forwarded)
        if client.rate_limit_key is None and not self._missing_logged:
            self._warn_missing_once(scope, peer)
        trace_of(scope).address = client.address
        try:
            self._limits.check_address(client)
        except TooManyRequests as exc:
            response = await errors.handle_ccp_error(Request(scope), exc)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _warn_untrusted_once(self, peer: str | None) -> None:
        if not self._untrusted_logged:
            self._untrusted_logged = True
            _log.warning(
                "X-Forwarded-For is not believed; if this is a proxy, trusted_proxies has to say so", peer=peer
            )

    def _warn_missing_once(self, scope: Scope, peer: str | None) -> None:
        """Warn about a trusted proxy that sends no client address. Local probes do not count."""
        if (
            self._limits.proxies.contains(peer)
            and scope["path"] not in _PROBED
            and not scope["path"].startswith("/health")
        ):
            self._missing_logged = True
            self._count_problem("missing")
            _log.warning(
                "no client address from trusted proxy; set X-Forwarded-For there, limits by address do not hold for it",
                peer=peer,
            )


def _forwarded(scope: Scope) -> str:
    """Return the end of X-Forwarded-For, which the nearest proxies wrote."""
    lines = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
    return b",".join(lines)[-_FORWARDED:].decode("latin-1") if lines else ""
