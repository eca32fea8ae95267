"""The HTTP/1.1 protocol of the server: uvicorn's, hardened against hostile clients.

uvicorn and its parser read requests well. `Connection` adds:

- limits on the size of head and body, and deadlines for head, body and response (`ccp.server.http.deadlines`);
- limits on the number of connections, in total and for each address (`ccp.server.http.connection_limits`);
- admission control (`ccp.server.http.admission`);
- rejection of requests that two readers could understand differently (RFC 9112 clauses 6.3 and 11.2);
- an error response in the API's shape and one log event for each rejected request.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
import uuid
from collections.abc import Hashable
from typing import Any, Final
from urllib.parse import unquote

import httptools
import structlog
from uvicorn import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from ccp.errors.codes import code_of_status
from ccp.server.http import deadlines
from ccp.server.http.admission import IDENTIFIED
from ccp.server.http.client_certificate import SCOPE_KEY
from ccp.server.http.deadlines import BETWEEN_REQUESTS, BODY, HEAD, NEVER, TimedConnection
from ccp.server.http.error_body import INTERNAL_ERROR, error_response, parser_message
from ccp.server.http.overload import VEHICLE_REQUEST
from ccp.server.http.request_cycle import RequestCycle
from ccp.server.http.write_batching import BufferedTransport
from ccp.server.request_counts import Dialect

_log = structlog.get_logger("ccp.request")

STATE: Final = "ccp.connections"
"""Key of the worker's `ConnectionRegistry` in the state that the application's lifespan yields."""

_MAX_TARGET: Final = 4096  # Bytes. The longest path with all parameters of the API has some 400.
_MAX_HEADERS: Final = 100
_MAX_HEAD: Final = 32_768  # Bytes: room for a token, and for a certificate that a proxy passes on.
_MAX_PIPELINED: Final = 16  # Requests that a client may send before it has the responses; hardly any client does.
_LINGER_TIMEOUT: Final = 2.0
_MAX_LINGER: Final = 1 << 20  # Bytes.

_CHECKED_HEADERS: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
_HOST: Final = re.compile(rb"[A-Za-z0-9._~%!$&'()*+;=:\[\]-]*")


class _StopParsing(Exception):
    """Raised within the parser's callbacks: read no further."""


class Connection(TimedConnection):
    """A connection of a client.

    Source: RFC 9112; where it leaves a choice, the stricter one is made.
    """

    def __init__(self, config: Config, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state[STATE], _loop)
        self._admission = self._connections.admission
        self._identified = self._admission.identified
        self._next_cycle: RequestCycle | None = None
        """The cycle to offer to the admission when its body has arrived or the input ends."""
        self._offered: RequestCycle | None = None
        """The cycle that was offered last."""
        self._epoch = -1
        self._address: str | None = None
        self._certificate: bytes | None = None
        self._message_no = 0
        self._received = 0
        self._fed = 0
        self._heads_fed = 0
        self._body_size = 0
        self._upgrading = False
        self._problem: tuple[int, str] | None = None
        self._pending_error: tuple[int, str] | None = None
        self.counted: bytes | None = None
        """The address that this connection counts for; None behind a trusted proxy."""

    # Connection.

    def accepted(self, accepted: socket.socket, address: str | None) -> None:
        """Count a TLS connection, whose handshake begins."""
        self._in_handshake = accepted
        self._register(address)

    def handshake_failed(self) -> None:
        """Stop counting a connection whose TLS handshake failed."""
        self._connections.unregister(self)

    def _register(self, address: str | None) -> None:
        self._address = address
        self._started_at = self._free_since = time.monotonic()
        self._refusal = self._connections.register(self, address)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._buffered = BufferedTransport(transport, self._connections.write_batcher)
        super().connection_made(self._buffered)  # type: ignore[arg-type]
        if self._in_handshake is None:
            self._register(self.client[0] if self.client else None)
        self._in_handshake = None
        if self._refusal is not None:
            self._draining = True
            self._write_error(*self._refusal, str(uuid.uuid4()))
            self._linger()
            return
        self._started_at = time.monotonic()
        self._deadline = self._started_at + self._connections.read_timeout
        ssl_object = transport.get_extra_info("ssl_object")
        if ssl_object is not None:
            self._certificate = ssl_object.getpeercert(binary_form=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.unregister(self)
        super().connection_lost(exc)
        cycle = self._offered
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            self._admission.disconnected(cycle)
        # Cycles refer to their connection. Without this, only the garbage collector would free them.
        self.cycle = self._offered = self._next_cycle = None  # type: ignore[assignment]
        self.pipeline.clear()

    # Input.

    def data_received(self, data: bytes) -> None:
        if self._draining:
            self._received += len(data)
            if self._received > _MAX_LINGER:
                self.flow.pause_reading()
            return
        if self._admission.overloaded and data.startswith(VEHICLE_REQUEST) and self._shed_unparsed(data):
            return
        message_no, self._fed, self._heads_fed = self._message_no, len(data), 0
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._reparse_without_upgrade(data[exc.args[0] :])
            return
        except httptools.HttpParserError as exc:
            if not self._draining:
                self._fail(*self._problem_of(exc))
            self._offer()
            return
        if self._next_cycle is not None:  # The rest of its body comes later.
            self._offer()
        if self._message_no == message_no:  # All of the data belongs to the same head or body as the data before.
            self._received += len(data)
            if self._stage is HEAD and self._received > _MAX_HEAD:
                self._fail(431, f"The head of the request is larger than {_MAX_HEAD} bytes.")
            elif self._stage is BODY and self._received > 2 * self._connections.max_body + 65_536:
                # Twice the body leaves room for chunks of reasonable size.
                self._fail(413, f"The body is larger than {self._connections.max_body} bytes.")

    def _reparse_without_upgrade(self, rest: bytes) -> None:
        """Ignore the header Upgrade, at which the parser stops, and continue in HTTP/1.1 (RFC 9110 clause 7.8).

        Some clients ask for HTTP/2 in this way with the first request of a connection, even with one that has a body.
        """
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            if name == b"connection":
                tokens = (token.strip() for token in value.split(b","))
                value = b", ".join(token for token in tokens if token.lower() != b"upgrade")
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self._upgrading = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._stage = BETWEEN_REQUESTS
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def _problem_of(self, exc: httptools.HttpParserError) -> tuple[int, str]:
        if self._problem is None and isinstance(exc, httptools.HttpParserCallbackError):
            _log.error("a connection's own code failed", exc_info=exc)
            return 500, INTERNAL_ERROR
        return self._problem or (400, f"The request is not valid HTTP: {parser_message(exc)}.")

    def _reject(self, status: int, message: str) -> _StopParsing:
        """Return the exception with which a callback of the parser rejects the request."""
        self._problem = status, message
        return _StopParsing()

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._stage, self._received, self._message_no = HEAD, 0, self._message_no + 1
        self._started_at = time.monotonic()
        self._deadline = self._started_at + self._connections.read_timeout

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > _MAX_TARGET:
            raise self._reject(414, f"Path and query are longer than {_MAX_TARGET} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage is not HEAD:
            return  # A trailer. As a header it could replace Authorization (RFC 9110 clause 6.5.1).
        if len(self.headers) >= _MAX_HEADERS:
            raise self._reject(431, f"The request has more than {_MAX_HEADERS} headers.")
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser, scope = self.parser, self.scope
        version = parser.get_http_version()
        method = parser.get_method().decode("ascii")
        expects, length = self._check_head(version)
        if parser.should_upgrade():
            if method == "CONNECT":
                raise self._reject(501, "The pool is no proxy.")
            self._upgrading = True
            return
        try:
            target = httptools.parse_url(self.url)
            raw_path = target.path or b"/"
            path = raw_path.decode("ascii")
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError) as exc:
            raise self._reject(400, "The path of the request is not valid.") from exc
        scope["method"] = method
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = target.query or b""
        scope[SCOPE_KEY] = self._certificate  # type: ignore[typeddict-unknown-key]
        scope[IDENTIFIED] = self._identified  # type: ignore[typeddict-unknown-key]
        self._accept(length, expects=expects, keep_alive=version == "1.1" and parser.should_keep_alive())

    def _check_head(self, version: str) -> tuple[bool, int]:
        """Reject heads that the parser accepts and the pool does not.

        Returns whether the client waits for 100 Continue, and the announced length of the body.
        """
        hosts, length, chunked, expects = 0, 0, False, False
        for name, value in self.headers:
            if name not in _CHECKED_HEADERS:
                continue
            if name == b"host":
                hosts += 1
                if not _HOST.fullmatch(value):
                    raise self._reject(400, "The header Host is not valid.")
            elif name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                chunked = True
                if value.lower() != b"chunked":
                    raise self._reject(501, "The pool knows no transfer coding but chunked.")
            else:
                expects = version == "1.1" and value.lower() == b"100-continue"
        if version not in ("1.0", "1.1"):
            raise self._reject(505, "The pool speaks HTTP/1.1.")
        if self._received + self._fed > _MAX_HEAD:  # Perhaps too large: part of the data may not belong to the head.
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > _MAX_HEAD:
                raise self._reject(431, f"The head of the request is larger than {_MAX_HEAD} bytes.")
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise self._reject(400, "The request needs the header Host, once.")
        if chunked and version == "1.0":
            raise self._reject(400, "HTTP/1.0 knows no transfer codings.")
        return expects, length

    def _accept(self, length: int, *, expects: bool, keep_alive: bool) -> None:
        """Start the cycle of a request whose head is complete."""
        previous: RequestCycle | None = self.cycle
        self.cycle = RequestCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=expects,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )
        self._stage, self._received, self._body_size, self._message_no = BODY, 0, 0, self._message_no + 1
        self._deadline = time.monotonic() + self._connections.read_timeout
        if length > self._connections.max_body:
            self.cycle.abort_with(413, f"The body is larger than {self._connections.max_body} bytes.")
        self.cycle.connection, self.cycle.admission = self, self._admission
        self._heads_fed += 1
        if previous is None or previous.response_complete:
            self._next_cycle = self.cycle
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        # Refused requests never wait in the pipeline, so the requests of one read count too.
        if max(len(self.pipeline) + 1, self._heads_fed) > _MAX_PIPELINED:
            # The requests before this one are answered. Later ones are not read; the client may repeat them.
            self._draining = self.cycle.close_after_response = True
            self._deadline = NEVER
            self.cycle.abort_with(400, f"More than {_MAX_PIPELINED} requests were sent ahead.")
            raise _StopParsing

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if cycle.response_complete or cycle.deferred_error is not None:
            return
        self._body_size += len(body)
        if self._body_size > self._connections.max_body:
            cycle.abort_with(413, f"The body is larger than {self._connections.max_body} bytes.")
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        self._stage = BETWEEN_REQUESTS
        if self.cycle.response_complete:
            self._deadline = time.monotonic() + deadlines.IDLE_TIMEOUT
            return
        self._deadline = NEVER
        self.cycle.more_body = False
        self.cycle.message_event.set()
        if self._next_cycle is not None:
            self._offer()

    # Admission.

    def _offer(self) -> None:
        cycle, self._next_cycle = self._next_cycle, None
        if cycle is None:
            return
        self._offered = cycle
        self._count_as_asking()
        self._admission.offer(cycle, cycle.scope["method"], cycle.scope["path"])

    def _count_as_asking(self) -> None:
        """Count a request, and this connection among those that send requests in the current epoch of the admission."""
        admission = self._admission
        admission.arrived += 1
        if self._epoch != admission.epoch:
            self._epoch = admission.epoch
            admission.asking += 1

    def run(self, cycle: RequestCycle) -> None:
        """Pass an admitted request to the application."""
        self._start_asgi_task(cycle, self.app)

    def shed(self, cycle: RequestCycle) -> None:
        """Answer 503 to a request that is not started. The rest of its body is read and discarded."""
        cycle.response_started = cycle.response_complete = True
        if cycle.waiting_for_100_continue and cycle.more_body:
            cycle.close_after_response = True  # See `RequestCycle.send`.
        closes = cycle.close_after_response or not cycle.keep_alive
        response = self._connections.load_shedder.response(
            self.server_state.default_headers, secured=self.scheme == "https", close=closes
        )
        if cycle.scope["method"] == "HEAD":
            response = response[: response.index(b"\r\n\r\n") + 4]
        self._buffered.write(response)
        cycle.close_after_response = closes
        self.on_response_complete()

    def counted_address(self, cycle: RequestCycle) -> Hashable:
        """Return what the client of a request counts as while its token is not verified."""
        return self._connections.counted_address(self._address, cycle.scope["headers"])

    def _shed_unparsed(self, data: bytes) -> bool:
        """Answer 503 to a request without parsing it. Returns False if it has to be parsed."""
        if self._stage is not BETWEEN_REQUESTS or not self._answered or self.transport.is_closing():
            return False
        connections = self._connections
        if not connections.load_shedder.try_shed(data, self.counted):
            return False
        self._count_as_asking()
        response = connections.load_shedder.response(self.server_state.default_headers, secured=self.scheme == "https")
        self._buffered.write_now(response)
        self._free_since = now = time.monotonic()
        self._deadline = now + deadlines.IDLE_TIMEOUT
        return True

    # Output.

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._free_since = now = time.monotonic()
        if self.transport.is_closing():
            return
        if not self.flow.write_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._next_cycle = self.pipeline.pop()[0]  # type: ignore[assignment]
            self._offer()
        elif self._draining or self.cycle.close_after_response:
            self._draining = True
            self._send_error_and_linger()
        elif self._stage is BETWEEN_REQUESTS:
            self._deadline = now + deadlines.IDLE_TIMEOUT

    def _fail(self, status: int, message: str) -> None:
        """Reject the request that is being received, after the pending responses; then stop reading."""
        self._draining, self._received, self._deadline = True, 0, NEVER
        if self._stage is BODY:
            self.cycle.close_after_response = True
            if not self.cycle.response_complete:
                self.cycle.abort_with(status, message)
                return
        else:
            self._pending_error = status, message
        if self.cycle is None or self.cycle.response_complete:
            self._send_error_and_linger()

    def _send_error_and_linger(self) -> None:
        """Send the pending error, if any, and give the client time to read it."""
        if self._pending_error is not None:
            status, message = self._pending_error
            trace_id = str(uuid.uuid4())
            duration = time.monotonic() - self._started_at
            self._connections.metrics.request(None, status, "refused", duration)
            self._connections.metrics.counts.add(Dialect.OTHER, None, code_of_status(status))
            _log.info(
                "request handled",
                trace_id=trace_id,
                address=self._address,
                status=status,
                outcome="refused",
                code=code_of_status(status),
                reason=message,
                ms=round(duration * 1000, 2),
            )
            self._write_error(status, message, trace_id)
        self._linger()

    def _linger(self) -> None:
        """Read and discard what the client still sends: a reset could destroy the response (RFC 9112 clause 9.6)."""
        self._free_since = now = time.monotonic()
        self._deadline = now + _LINGER_TIMEOUT
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _write_error(self, status: int, message: str, trace_id: str) -> None:
        self.transport.write(error_response(status, message, trace_id, self.server_state.default_headers))
