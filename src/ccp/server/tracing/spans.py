"""Spans and their export. The only module that imports opentelemetry.

Spans are queued; a thread of the library exports them in batches. The queue is bounded (`OTEL_BSP_MAX_QUEUE_SIZE`), and
spans that do not fit are dropped. A request never waits for the exporter, and an exporter that fails logs one event
until it works again.

The attributes are those of the log event of the request: ids follow `log_identifiers`. No URL, token or body.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from types import MappingProxyType
from typing import Any, Final, ParamSpec, TypeVar

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ccp.server.runtime.blocking_calls import BlockingCalls

_log = structlog.get_logger("ccp.server.tracing")

P = ParamSpec("P")
T = TypeVar("T")
Attributes = Mapping[str, str | int]

_CLOSE_TIMEOUT: Final = 3.0
"""Seconds for the spans that are queued when the pool stops."""
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class Spans:
    """The traces of one process. Close it when done."""

    def __init__(self, version: str, exporter: SpanExporter | None = None) -> None:
        """version: of the pool. exporter: None for one that the environment configures."""
        # The library logs each failed batch with a traceback; `_ReportingExporter` reports the first one.
        library = logging.getLogger("opentelemetry")
        library.propagate = False
        library.addHandler(logging.NullHandler())
        found = OTELResourceDetector().detect().attributes
        defaults: dict[str, Any] = {
            "service.name": "opnc-ccp",
            "service.version": version,
            "service.instance.id": str(uuid.uuid4()),
            "process.pid": os.getpid(),
        }
        provider = TracerProvider(resource=Resource.create({**defaults, **found}), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(_ReportingExporter(exporter or OTLPSpanExporter())))
        self._provider = provider
        self._tracer = provider.get_tracer("ccp.server", version)
        self._closing = BlockingCalls("export of traces", max_threads=1, timeout=_CLOSE_TIMEOUT)

    async def close(self) -> None:
        """Export what is queued, for some seconds at most."""
        try:
            await self._closing.run(self._provider.shutdown)
        except Exception as exc:
            _log.warning("traces lost", reason=str(exc))

    def trace_ids(self) -> Iterator[str]:
        """Yield the trace id of the current span each time, in the form of a UUID: the `traceId` of the API."""
        while True:
            yield str(uuid.UUID(int=trace.get_current_span().get_span_context().trace_id))

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """The span of a request, in the caller's trace if the header traceparent is valid."""
        with self._tracer.start_as_current_span(
            method,
            _PROPAGATOR.extract(headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method},
            record_exception=False,
        ) as span:
            yield span

    @contextmanager
    def within(
        self, name: str, attributes: Attributes = MappingProxyType({}), *, client: bool = False
    ) -> Iterator[None]:
        """A span within that of a request. Background work has none, and gets none. client: of a call to a server."""
        if not trace.get_current_span().is_recording():
            yield
            return
        kind = SpanKind.CLIENT if client else SpanKind.INTERNAL
        with self._tracer.start_as_current_span(name, kind=kind, attributes=attributes, record_exception=False):
            yield

    @contextmanager
    def outbound(self, name: str, attributes: Attributes) -> Iterator[Span]:
        """The span of a request to another server, whose `headers` carry the trace. Background work begins a trace."""
        with self._tracer.start_as_current_span(
            name, kind=SpanKind.CLIENT, attributes=attributes, record_exception=False
        ) as span:
            yield span

    def headers(self) -> dict[str, str]:
        """The headers that carry the current trace to another server (W3C Trace Context)."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        return carrier

    @staticmethod
    def set_status(span: Span, status: int, outcome: str | None) -> None:
        """Record the status of a response. Source: OpenTelemetry semantic conventions for HTTP.

        outcome: the code of a refusal, or the kind of failure; None for a success.
        """
        if status:
            span.set_attribute("http.response.status_code", status)
        if outcome is not None:
            span.set_attribute("error.type", outcome)
        if status >= 500 or not status:
            span.set_status(Status(StatusCode.ERROR))

    def traced(
        self, name: str, function: Callable[P, Awaitable[T]], *, client: bool = False
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        """The function with a span of this name around it. client: of a call to a server."""

        @wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.within(name, client=client):
                return await function(*args, **kwargs)

        return call


class _ReportingExporter(SpanExporter):
    """Logs when an exporter begins to fail, and when it works again. Runs in the library's thread."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export a batch. A batch that fails is dropped."""
        reason = "The receiver does not answer or refuses the spans."
        try:
            result = self._exporter.export(spans)
        except Exception as exc:
            result, reason = SpanExportResult.FAILURE, f"The exporter failed: {type(exc).__name__}."
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._failing:
            _log.warning("trace export failed", reason=reason)
        elif self._failing and not failed:
            _log.info("trace export recovered")
        self._failing = failed
        return result

    def shutdown(self) -> None:
        """End the exporter, and its retries."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is buffered here."""
        return True


def attributes_of(members: Mapping[str, Any]) -> dict[str, str | int]:
    """Attributes of the pool's own, with its prefix; absent ones are left out."""
    return {f"ccp.{name}": value for name, value in members.items() if value is not None}
