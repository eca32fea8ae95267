"""Middleware that routes the hot endpoints without FastAPI's stack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ccp.errors import CCPError
from ccp.server.http import errors, paths


class FastPathEndpoint(ABC):
    """A bare ASGI endpoint with a fixed path. It raises CCPError and HTTPException like a route of the framework."""

    @abstractmethod
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of any method."""


class FastPathMiddleware:
    """ASGI middleware, the innermost: calls endpoints of the fast path directly, and the framework for other paths.

    The framework's middleware and router do nothing for these endpoints. Their routes stay registered with the
    framework, for the OpenAPI description and for lists of routes.

    Other routes see HEAD as GET. The server leaves out the body, because it goes by the request as received.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app: Final = app
        self._endpoints: Final = {
            route.path: route.app
            for route in routes
            if isinstance(route, Route) and isinstance(route.endpoint, FastPathEndpoint)
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
            response = await errors.handle_ccp_error(Request(scope), exc)
        except HTTPException as exc:
            response = await errors.handle_http_exception(Request(scope), exc)
        await response(scope, receive, send)
