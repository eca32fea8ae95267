"""The server: uvicorn with a protocol that distrusts its clients.

uvicorn and its parser read requests well, but they wait as long as a client likes, keep as much of a head as it sends,
and answer what they cannot read in words of their own. `Connection` adds what is missing:

- how large a head may be, and how long it, the body and the taking of the answer may last;
- how many connections there may be, in all and from one address (`ccp.server.http.connection_limits`);
- requests that two readers could understand differently end the connection (RFC 9112 clauses 6.3 and 11.2);
- every refusal is an answer in the API's shape and one log event.

Time is kept by one watch for all connections of a worker, so a request pays for it with a few assignments.
"""

from __future__ import annotations

import asyncio
import math
import re
import socket
import ssl
import time
import uuid
from collections.abc import Hashable
from typing import Any, Final
from urllib.parse import unquote

import httptools
import structlog
from uvicorn import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ccp.server.http import tls
from ccp.server.http.admission import IDENTIFIED
from ccp.server.http.connection_limits import ConnectionRegistry, shortened
from ccp.server.http.overload import VEHICLE_REQUEST
from ccp.server.http.request_cycle import RequestCycle, error_body, parser_message
from ccp.server.http.write_batching import BufferedTransport
from ccp.server.settings import Settings

_log = structlog.get_logger("ccp.request")

STATE: Final = "ccp.connections"
"""Where the application's lifespan puts the worker's `Connections`."""
CERTIFICATE: Final = "ccp.client_certificate"
"""Where the scope of a request has the certificate that the client showed in the TLS handshake: DER, or None."""

_MAX_TARGET: Final = 4096  # The longest path with all parameters that the API knows has some 400 octets.
_MAX_HEADERS: Final = 100
_MAX_HEAD: Final = 32_768  # Room for a token, and for a certificate that a proxy passes on.
_MAX_WAITING: Final = 16  # Requests that a client sends ahead of their answers; hardly any does.
_IDLE_SECONDS: Final = 75.0  # Longer than proxies wait (60 is common), so that it is they who close a connection.
_LINGER_SECONDS: Final = 2.0
_LINGER_OCTETS: Final = 1 << 20
# Timeouts of a full worker: enough for an honest client.
_SHORTEST_TIMEOUT: Final = 5.0
_SHORTEST_HANDSHAKE: Final = 2.0
_FOREVER: Final = math.inf

# What of a request the parser is reading. Plain numbers: they are compared for every header.
_NOTHING: Final = 0
_HEAD: Final = 1
_BODY: Final = 2

_LOOKED_AT: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
_HOST: Final = re.compile(rb"[A-Za-z0-9._~%!$&'()*+;=:\[\]-]*")


class _Stop(Exception):
    """Raised within the parser's callbacks: read no further."""


class Connection(HttpToolsProtocol):
    """A connection of a client.

    Source: RFC 9112; where it leaves a choice, the stricter one is made.
    """

    cycle: RequestCycle
    _outgoing: BufferedTransport
    """What `transport` is."""

    def __init__(self, config: Config, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, {}, _loop)
        self._connections: ConnectionRegistry = app_state[STATE]
        self._admission = self._connections.admission
        self._identified = self._admission.identified
        self._offered: RequestCycle | None = None
        self._head: RequestCycle | None = None
        self._epoch = -1
        self._address: str | None = None
        self._certificate: bytes | None = None
        self._stage = _NOTHING
        self._turn = 0
        self._octets = 0
        self._fed = 0
        self._ahead = 0
        self._body = 0
        self._upgrading = False
        self._problem: tuple[int, str] | None = None
        self._deaf = False
        self._farewell: tuple[int, str] | None = None
        self._began = self._due = _FOREVER
        self._stuck = _FOREVER
        self._leaving = False
        # What limits need to know.
        self.counted: bytes | None = None
        self._refusal: tuple[int, str] | None = None
        self._in_handshake: socket.socket | None = None
        self._free_since = 0.0

    # The connection.

    def accepted(self, accepted: socket.socket, address: str | None) -> None:
        """A connection with TLS: it counts while its handshake lasts."""
        self._in_handshake = accepted
        self._enter(address)

    def handshake_failed(self) -> None:
        self._connections.leave(self)

    def _enter(self, address: str | None) -> None:
        self._address = address
        self._began = self._free_since = time.monotonic()
        self._refusal = self._connections.enter(self, address)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._outgoing = BufferedTransport(transport, self._connections.writing)
        super().connection_made(self._outgoing)  # type: ignore[arg-type]
        if self._in_handshake is None:
            self._enter(self.client[0] if self.client else None)
        self._in_handshake = None
        if self._refusal is not None:
            self._deaf = True
            self._write_error(*self._refusal, str(uuid.uuid4()))
            self._linger()
            return
        self._began = time.monotonic()
        self._due = self._began + self._connections.seconds
        secured = transport.get_extra_info("ssl_object")
        if secured is not None:
            self._certificate = secured.getpeercert(binary_form=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.leave(self)
        super().connection_lost(exc)
        head = self._head
        if head is not None and not head.response_complete:
            head.disconnected = True
            head.message_event.set()
            self._admission.gone(head)
        # Requests refer to their connection. Without this, only the garbage collector would find what has ended.
        self.cycle = self._head = self._offered = None  # type: ignore[assignment]
        self.pipeline.clear()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = time.monotonic() + self._connections.seconds
        # A client that does not read gets no more answers: refusals do not wait for it, and would pile up.
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stuck = _FOREVER
        self.flow.resume_reading()

    def look(self, now: float, pressure: float) -> None:
        """Called by the watch: end what is overdue."""
        if (
            pressure == 0.0
            and now < self._due
            and now < self._stuck
            and self._in_handshake is None
            and not self.transport.is_closing()
        ):
            return  # Nearly all of them; there may be ten thousand.
        if self._in_handshake is not None:
            pressure = 1.0 if self._refusal else pressure
            if now > self._began + shortened(tls.HANDSHAKE_TIMEOUT, _SHORTEST_HANDSHAKE, pressure):
                self.abort()
        elif self.transport.is_closing():
            if not self._leaving:
                self._leaving, self._due = True, now + self._connections.seconds
            elif now > self._due:
                self.transport.abort()  # The rest of the answer is not being taken.
        elif now > self._stuck:
            self.transport.abort()
        elif self._deaf:
            if now > self._due:
                self.transport.close()
        elif self._due is not _FOREVER:
            between = self._stage is _NOTHING and self.cycle is not None
            timeout = _IDLE_SECONDS if between else self._connections.seconds
            allowed = shortened(timeout, _SHORTEST_TIMEOUT, pressure)
            if now > self._due - timeout + allowed:
                self._overdue(now, allowed)

    def _overdue(self, now: float, allowed: float) -> None:
        if self._stage is _NOTHING:
            self.transport.close()
        elif self.flow.read_paused:
            self._due = now + 1.0  # It is we who are not reading.
        else:
            what = "head" if self._stage is _HEAD else "body"
            self._fail(408, f"The {what} of the request took longer than {allowed:.0f} seconds.")

    # What the limits ask.

    def idle_since(self) -> float | None:
        if self._in_handshake is not None:
            return self._began
        return self._free_since if self._answered and not self._outgoing.unsent() else None

    def stalled_since(self) -> float | None:
        if self._in_handshake is not None:
            return None
        if self._answered:
            return self._free_since if self._outgoing.unsent() else None
        if self._stuck is not _FOREVER:
            return self._stuck - self._connections.seconds
        return self._began if self._owed_a_body else None

    def give_way(self) -> bool:
        if self._in_handshake is None and not self._answered and self._owed_a_body:
            self._fail(503, "The pool has too many connections just now, and the rest of this request has not come.")
            return True
        self.abort()
        return False

    @property
    def _answered(self) -> bool:
        cycle: RequestCycle | None = self.cycle
        return cycle is None or (cycle.response_complete and not self.pipeline)

    @property
    def _owed_a_body(self) -> bool:
        return self.cycle.more_body and not self.flow.read_paused and not self._deaf

    def abort(self) -> None:
        if self._in_handshake is not None:
            tls.shut_down(self._in_handshake)
        else:
            self.transport.abort()

    # What comes in.

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._octets += len(data)
            if self._octets > _LINGER_OCTETS:
                self.flow.pause_reading()
            return
        if self._admission.overloaded and data.startswith(VEHICLE_REQUEST) and self._sheds_unread(data):
            return
        turn, self._fed, self._ahead = self._turn, len(data), 0
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._read_again(data[exc.args[0] :])
            return
        except httptools.HttpParserError as exc:
            if not self._deaf:
                self._fail(*self._problem_of(exc))
            self._offer()
            return
        if self._offered is not None:  # The rest of its body comes later.
            self._offer()
        if self._turn == turn:  # All of it belongs to the same head, or to the same body, as what came before.
            self._octets += len(data)
            if self._stage is _HEAD and self._octets > _MAX_HEAD:
                self._fail(431, f"The head of the request is larger than {_MAX_HEAD} octets.")
            elif self._stage is _BODY and self._octets > 2 * self._connections.max_body + 65_536:
                # Twice the body is room for chunks of reasonable size.
                self._fail(413, f"The body is larger than {self._connections.max_body} octets.")

    def _read_again(self, rest: bytes) -> None:
        """Pass over the wish for another protocol, with which the parser ends: HTTP/1.1 goes on (RFC 9110 clause 7.8).

        Some HTTP clients ask for HTTP/2 in this way with every first request, even with one that has a body.
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
        self._stage = _NOTHING
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def _problem_of(self, exc: httptools.HttpParserError) -> tuple[int, str]:
        if self._problem is None and isinstance(exc, httptools.HttpParserCallbackError):
            _log.error("a connection's own code failed", exc_info=exc)
            return 500, "Something went wrong here; the trace id finds it in the log."
        return self._problem or (400, f"The request is not valid HTTP: {parser_message(exc)}.")

    def _stop(self, status: int, sentence: str) -> _Stop:
        self._problem = status, sentence
        return _Stop()

    # What the parser finds.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._stage, self._octets, self._turn = _HEAD, 0, self._turn + 1
        self._began = time.monotonic()
        self._due = self._began + self._connections.seconds

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > _MAX_TARGET:
            raise self._stop(414, f"Path and query are longer than {_MAX_TARGET} octets.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage is not _HEAD:
            return  # A trailer; taken for a header it could say who calls (RFC 9110 clause 6.5.1).
        if len(self.headers) >= _MAX_HEADERS:
            raise self._stop(431, f"The request has more than {_MAX_HEADERS} headers.")
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser, scope = self.parser, self.scope
        version = parser.get_http_version()
        method = parser.get_method().decode("ascii")
        expects, length = self._check_head(version)
        if parser.should_upgrade():
            if method == "CONNECT":
                raise self._stop(501, "The pool is no proxy.")
            self._upgrading = True
            return
        try:
            target = httptools.parse_url(self.url)
            raw_path = target.path or b"/"
            path = raw_path.decode("ascii")
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError) as exc:
            raise self._stop(400, "The path of the request is not valid.") from exc
        scope["method"] = method
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = target.query or b""
        scope[CERTIFICATE] = self._certificate  # type: ignore[typeddict-unknown-key]
        scope[IDENTIFIED] = self._identified  # type: ignore[typeddict-unknown-key]
        self._accept(length, expects=expects, keep_alive=version == "1.1" and parser.should_keep_alive())

    def _check_head(self, version: str) -> tuple[bool, int]:
        """What the parser lets through and should not.

        Returns whether the client waits to be told to go on, and the length that it announces.
        """
        hosts, length, coded, expects = 0, 0, False, False
        for name, value in self.headers:
            if name not in _LOOKED_AT:
                continue
            if name == b"host":
                hosts += 1
                if not _HOST.fullmatch(value):
                    raise self._stop(400, "The header Host is not valid.")
            elif name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                coded = True
                if value.lower() != b"chunked":
                    raise self._stop(501, "The pool knows no transfer coding but chunked.")
            else:
                expects = version == "1.1" and value.lower() == b"100-continue"
        if version not in ("1.0", "1.1"):
            raise self._stop(505, "The pool speaks HTTP/1.1.")
        if self._octets + self._fed > _MAX_HEAD:  # Perhaps; a part of this is not of the head.
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > _MAX_HEAD:
                raise self._stop(431, f"The head of the request is larger than {_MAX_HEAD} octets.")
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise self._stop(400, "The request needs the header Host, once.")
        if coded and version == "1.0":
            raise self._stop(400, "HTTP/1.0 knows no transfer codings.")
        return expects, length

    def _accept(self, length: int, *, expects: bool, keep_alive: bool) -> None:
        before: RequestCycle | None = self.cycle
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
        self._stage, self._octets, self._body, self._turn = _BODY, 0, 0, self._turn + 1
        self._due = time.monotonic() + self._connections.seconds
        if length > self._connections.max_body:
            self.cycle.cut(413, f"The body is larger than {self._connections.max_body} octets.")
        self.cycle.carrier, self.cycle.admission = self, self._admission
        self._ahead += 1
        if before is None or before.response_complete:
            self._offered = self.cycle
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        # Those that are refused never wait; what comes at once is one turn of the event loop nevertheless.
        if max(len(self.pipeline) + 1, self._ahead) > _MAX_WAITING:
            # All before it are answered; what comes behind it is not read, and the client may send that again.
            self._deaf = self.cycle.last = True
            self._due = _FOREVER
            self.cycle.cut(400, f"More than {_MAX_WAITING} requests were sent ahead.")
            raise _Stop

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if cycle.response_complete or cycle.broken is not None:
            return
        self._body += len(body)
        if self._body > self._connections.max_body:
            cycle.cut(413, f"The body is larger than {self._connections.max_body} octets.")
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        self._stage = _NOTHING
        if self.cycle.response_complete:
            self._due = time.monotonic() + _IDLE_SECONDS
            return
        self._due = _FOREVER
        self.cycle.more_body = False
        self.cycle.message_event.set()
        if self._offered is not None:
            self._offer()

    # Which requests are started.

    def _offer(self) -> None:
        cycle, self._offered = self._offered, None
        if cycle is None:
            return
        self._head = cycle
        self._asks()
        self._admission.offer(cycle, cycle.scope["method"], cycle.scope["path"])

    def _asks(self) -> None:
        """Be counted among the connections that ask now."""
        admission = self._admission
        if self._epoch != admission.epoch:
            self._epoch = admission.epoch
            admission.asking += 1

    def run(self, cycle: RequestCycle) -> None:
        self._start_asgi_task(cycle, self.app)

    def shed(self, cycle: RequestCycle) -> None:
        """Answer 503 to a request that was not started. What is left of its body is read and dropped."""
        cycle.response_started = cycle.response_complete = True
        if cycle.waiting_for_100_continue and cycle.more_body:
            cycle.last = True  # See `RequestCycle.send`.
        closes = cycle.last or not cycle.keep_alive
        answer = self._connections.overload.answer(
            self.server_state.default_headers, secured=self.scheme == "https", close=closes
        )
        if cycle.scope["method"] == "HEAD":
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        self._outgoing.write(answer)
        cycle.last = closes
        self.on_response_complete()

    def counted_address(self, cycle: RequestCycle) -> Hashable:
        return self._connections.counted_address(self._address, cycle.scope["headers"])

    def _sheds_unread(self, data: bytes) -> bool:
        """Answer 503 to a request that has not been parsed, if it is one that may be answered so."""
        if self._stage is not _NOTHING or not self._answered or self.transport.is_closing():
            return False
        self._asks()
        connections = self._connections
        if not connections.overload.sheds(data, self.counted):
            return False
        answer = connections.overload.answer(self.server_state.default_headers, secured=self.scheme == "https")
        self._outgoing.write_now(answer)
        self._free_since = now = time.monotonic()
        self._due = now + _IDLE_SECONDS
        return True

    # What goes out.

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._free_since = now = time.monotonic()
        if self.transport.is_closing():
            return
        if not self.flow.write_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._offered = self.pipeline.pop()[0]  # type: ignore[assignment]
            self._offer()
        elif self._deaf or self.cycle.last:
            self._deaf = True
            self._leave()
        elif self._stage is _NOTHING:
            self._due = now + _IDLE_SECONDS

    def _fail(self, status: int, sentence: str) -> None:
        """What comes in is no good: answer it, after everything before it, and read no further."""
        self._deaf, self._octets, self._due = True, 0, _FOREVER
        if self._stage is _BODY:
            self.cycle.last = True
            if not self.cycle.response_complete:
                self.cycle.cut(status, sentence)
                return
        else:
            self._farewell = status, sentence
        if self.cycle is None or self.cycle.response_complete:
            self._leave()

    def _leave(self) -> None:
        """Say what is left to say, and give the client a moment to take it."""
        if self._farewell is not None:
            status, sentence = self._farewell
            trace_id = str(uuid.uuid4())
            seconds = time.monotonic() - self._began
            self._connections.metrics.request(None, status, "refused", seconds)
            _log.info(
                "request handled",
                trace_id=trace_id,
                address=self._address,
                status=status,
                outcome="refused",
                reason=sentence,
                ms=round(seconds * 1000, 2),
            )
            self._write_error(status, sentence, trace_id)
        self._linger()

    def _linger(self) -> None:
        """Take what the client is still sending: else the network could lose the answer (RFC 9112 clause 9.6)."""
        self._free_since = now = time.monotonic()
        self._due = now + _LINGER_SECONDS
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _write_error(self, status: int, sentence: str, trace_id: str) -> None:
        body = error_body(sentence, trace_id)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            (b"x-trace-id", trace_id.encode()),
        ]
        if status in (429, 503):
            headers.append((b"retry-after", b"2"))
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + body)


# --- How uvicorn is run ----------------------------------------------------------------------------------------------


def options(config: Settings) -> dict[str, Any]:
    """What uvicorn is told, the same for one worker, for many and for tests. Names, since workers are new processes."""
    told: dict[str, Any] = {
        "http": f"{__name__}:{Connection.__name__}",
        "loop": f"{tls.__name__}:{tls.Loop.__name__}",
        "ws": "none",
        "proxy_headers": False,
        "server_header": False,
        "access_log": False,
        "timeout_graceful_shutdown": 20,
    }
    if config.tls_cert is not None:
        told |= {"ssl_certfile": config.tls_cert, "ssl_keyfile": config.tls_key, "ssl_context_factory": tls.tls_context}
    if config.tls_client_ca is not None:
        told |= {"ssl_ca_certs": config.tls_client_ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return told
