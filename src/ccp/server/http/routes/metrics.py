"""GET /metrics: the pool's metrics for Prometheus."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from ccp.server.domain.authorization import MonitoringOperation
from ccp.server.http.middleware.tracing import trace_of
from ccp.server.http.request_context import RequestContext
from ccp.server.metrics import Metrics
from ccp.server.settings import MetricsAccess

PATH: Final = "/metrics"

# Headers that a proxy adds: the request comes from another host.
_FORWARDED: Final = frozenset(
    {b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip"}
)


def routes(metrics: Metrics, context: RequestContext, access: MetricsAccess) -> list[Route]:
    """Return the route, or none if the setting disables it."""

    async def show(request: Request) -> Response:
        trace_of(request.scope).operation = MonitoringOperation.GET_METRICS.value
        if access is MetricsAccess.ADMIN or not _is_local(request.scope):
            await context.authenticate(request.scope, request.headers, MonitoringOperation.GET_METRICS)
        content, media_type = metrics.render(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": media_type})

    return [] if access is MetricsAccess.OFF else [Route(PATH, show)]


def _is_local(scope: Scope) -> bool:
    """Whether a request comes from this machine and shows no sign of a proxy."""
    if not scope.get("client") or any(name in _FORWARDED for name, _ in scope["headers"]):
        return False
    try:
        address = ip_address(scope["client"][0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
