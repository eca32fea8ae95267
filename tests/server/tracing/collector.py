"""An OTLP receiver on loopback (HTTP with protobuf): keeps the spans that it gets."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.waiting import wait_until


@dataclass
class Received:
    """A span, with the attributes of its resource."""

    span: Span
    resource: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.span.name)

    @property
    def trace_id(self) -> str:
        return str(self.span.trace_id.hex())

    @property
    def span_id(self) -> str:
        return str(self.span.span_id.hex())

    @property
    def parent(self) -> str:
        return str(self.span.parent_span_id.hex())

    @property
    def attributes(self) -> dict[str, Any]:
        return {each.key: _value(each.value) for each in self.span.attributes}


@dataclass
class Collector:
    """status: of the responses."""

    endpoint: str
    spans: list[Received] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    status: int = 200

    def named(self, name: str) -> list[Received]:
        return [each for each in tuple(self.spans) if each.name == name]

    def wait(self, name: str, count: int = 1) -> list[Received]:
        """The spans of a name as soon as there are so many."""
        names = lambda: sorted({each.name for each in self.spans})  # noqa: E731
        wait_until(lambda: len(self.named(name)) >= count, 20, names)
        return self.named(name)

    def of_trace(self, trace_id: str) -> list[Received]:
        return [each for each in tuple(self.spans) if each.trace_id == trace_id]


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            collector.paths.append(self.path)
            if collector.status == 200:
                assert self.headers["content-type"] == "application/x-protobuf"
                collector.bodies.append(body)
                request = ExportTraceServiceRequest.FromString(body)
                for group in request.resource_spans:
                    resource = {each.key: _value(each.value) for each in group.resource.attributes}
                    for scope in group.scope_spans:
                        collector.spans += [Received(span, resource) for span in scope.spans]
            self.send_response(collector.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
