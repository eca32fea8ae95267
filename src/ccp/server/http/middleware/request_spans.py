"""Middleware around the pool's own that gives each request a span. It is there only if traces are exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ccp.server.http.middleware.tracing import Trace, trace_of
from ccp.server.tracing.spans import Spans, attributes_of

_CONTEXT: Final = (b"traceparent", b"tracestate")


class RequestSpanMiddleware:
    """ASGI middleware around `TraceMiddleware`, which takes its trace ids from `Spans.trace_ids`."""

    def __init__(self, app: ASGIApp, spans: Spans, describe: Callable[[Trace], dict[str, Any]]) -> None:
        """describe: members of a request for its log event, with ids as `log_identifiers` permits."""
        self._app = app
        self._spans = spans
        self._describe = describe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._spans.request(scope["method"], _trace_context(scope)) as span:
            status, code = 0, None

            async def send_observed(message: Message) -> None:
                nonlocal status, code
                if message["type"] == "http.response.start":
                    status = message["status"]
                    code = next((value for name, value in message["headers"] if name.lower() == b"x-error-code"), None)
                await send(message)

            try:
                await self._app(scope, receive, send_observed)
            finally:
                trace = trace_of(scope)
                if trace.operation is not None:
                    span.update_name(f"{scope['method']} {trace.operation}")
                if (route := getattr(scope.get("route"), "path", None)) is not None:
                    span.set_attribute("http.route", route)
                span.set_attribute("url.scheme", scope.get("scheme", "http"))
                for name, value in attributes_of({"operation": trace.operation, **self._describe(trace)}).items():
                    span.set_attribute(name, value)
                self._spans.set_status(span, status, None if code is None else code.decode("latin-1"))


def _trace_context(scope: Scope) -> dict[str, str]:
    """The headers of W3C Trace Context. A repeated traceparent is not valid, and counts as none."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name in _CONTEXT:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            if key == "traceparent" and key in found:
                return {}
            found[key] = f"{found[key]},{text}" if key in found else text
    return found
