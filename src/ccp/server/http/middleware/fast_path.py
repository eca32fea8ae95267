"""The way to the operations that carry the load, past what the framework does for every request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ccp.errors import CCPError
from ccp.server.http import errors, paths
from ccp.server.http.routes.opnc import SignedContractDataEndpoint


class FastPathMiddleware:
    """ASGI middleware, the innermost: routes of bare endpoints are answered here, everything else by the framework.

    A POST has no use for the framework's middleware and router. The routes stay where they are, for the description
    and for whoever reads them.

    HEAD is answered as GET is. The server leaves out the body: it goes by the request as it came.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app: Final = app
        self._endpoints: Final = {
            route.path: route.app
            for route in routes
            if isinstance(route, Route) and isinstance(route.endpoint, SignedContractDataEndpoint)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None:
            await self._app(paths.head_as_get(scope), receive, send)
            return
        try:
            await endpoint(scope, receive, send)
            return
        except CCPError as exc:
            refusal = await errors.handle_ccp_error(Request(scope), exc)
        except HTTPException as exc:
            refusal = await errors.handle_http_exception(Request(scope), exc)
        await refusal(scope, receive, send)
