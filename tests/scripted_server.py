"""A scripted HTTP server on loopback: responses by path, in order; it records requests and can misbehave.

with scripted() as server:
    server.on("/oauth/token", granted())                      # every time
    server.on("/opnc/v1/ccp/…", error(503), json_reply({}))   # first this, then that, which repeats
    server.on("/ocsp", lambda request: Reply(body=respond(request.body)))
    server.on("/crl/*", HANG)                                 # every path that begins so; the longest one counts
    server.connect(garbage)                                   # a script for the next connection, before any request
    …
    assert server.asked("/oauth/token")[0].headers["authorization"] == "Basic …"
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qs, urlsplit

from tests.waiting import wait_until

TRACE_ID = "0b6f1c6e-54a5-4f57-a0a8-5f4f5fd0d0b1"
JSON = {"Content-Type": "application/json"}
_IDLE = 30.0
"""Seconds of a silent client after which a connection's thread ends."""


@dataclass(frozen=True)
class Received:
    """A request. headers: names in lower case. connection: the client's port. at: time.monotonic()."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int = field(default=0, compare=False)
    at: float = field(default=0.0, compare=False)

    @property
    def path(self) -> str:
        """The target without its query."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)


class Connection:
    """A client's connection, for scripts that write bytes of their own. OSError after the client has gone."""

    def __init__(self, connected: socket.socket, ends: threading.Event) -> None:
        self._socket = connected
        self._ends = ends

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> bytes:
        """What the client sent next; empty at its end."""
        return self._socket.recv(65_536)

    def wait(self, seconds: float = _IDLE) -> bool:
        """Wait so long, or until the server ends, which is True."""
        return self._ends.wait(seconds)

    def reset(self) -> None:
        """Close with a TCP reset."""
        # SO_LINGER of zero seconds makes close() send a reset.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


Act = Callable[[Connection], object]
"""A script that handles the connection. The connection is closed after it."""


@dataclass
class Reply:
    """A response. delay: seconds before the response. act: handles the connection instead of a response."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    act: Act | None = None
    delay: float = 0.0


Script = Reply | bytes | Callable[[Any], Reply]
"""A response; the body of one with status 200; or a function of the request that returns one."""


# --- Responses -------------------------------------------------------------------------------------------------------


def json_reply(value: Any, status: int = 200, **headers: str) -> Reply:
    """A JSON response. headers: an underscore stands for a hyphen."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(status, json.dumps(value).encode(), {**JSON, **named})


def error(status: int, *messages: str, **headers: str) -> Reply:
    """An error response of a pool."""
    body = {"errorMessages": list(messages) or ["No."], "traceId": TRACE_ID}
    return json_reply(body, status, X_Trace_Id=TRACE_ID, **headers)


def granted(token: str = "a-token", expires_in: Any = 3600, **more: Any) -> Reply:
    """A token response."""
    return json_reply({"access_token": token, "token_type": "Bearer", "expires_in": expires_in, **more})


def text_reply(body: bytes, kind: str = "text/html") -> Reply:
    """A response with status 200. kind: its media type."""
    return Reply(200, body, {"Content-Type": kind})


def compressed(value: Any) -> Reply:
    """A JSON response with gzip."""
    return Reply(200, gzip.compress(json.dumps(value).encode()), {"Content-Encoding": "gzip"})


# --- Misbehaviour ----------------------------------------------------------------------------------------------------


def written(data: bytes) -> Reply:
    """These bytes in place of a response, then the end of the connection."""
    return Reply(act=lambda connection: connection.send(data))


def trickled(start: bytes, each: bytes = b" ", pause: float = 0.05) -> Reply:
    """`start`, then `each` again and again. pause: seconds between them; 0 sends as fast as the client reads."""

    def act(connection: Connection) -> None:
        connection.send(start)
        while not connection.wait(pause):
            connection.send(each)

    return Reply(act=act)


def dripped(body: bytes, pause: float) -> Reply:
    """A response whose body comes byte by byte. pause: seconds between two of them."""

    def act(connection: Connection) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for byte in body:
            connection.send(bytes((byte,)))
            if connection.wait(pause):
                break

    return Reply(act=act)


HANG = Reply(act=Connection.wait)
DROP = Reply(act=Connection.reset)
CLOSE = written(b"")
NOT_HTTP = written(b"SSH-2.0-OpenSSH_9.6\r\n")
TRICKLED_HEAD = trickled(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a")
TRICKLED_BODY = trickled(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
ENDLESS = trickled(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b" " * 65_536, pause=0)


# --- The server ------------------------------------------------------------------------------------------------------


class Scripted:
    """The server as a test sees it: its URL, its script and the requests that it received.

    busy: how many requests it has read and not yet answered. delay: seconds before every response, beside its own.
    """

    request_type: ClassVar[type[Received]] = Received
    default: ClassVar[Reply] = Reply(404)
    """The response of a path without a script."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.received: list[Any] = []
        self.busy = 0
        self.delay = 0.0
        self.ends = threading.Event()
        self._scripts: dict[str, list[Script]] = {}
        self._connections: list[Act] = []
        self._lock = threading.Lock()

    def on(self, path: str, *scripts: Script) -> str:
        """Set the responses of a path, in order; the last one repeats. Returns its URL."""
        with self._lock:
            self._scripts[path] = list(scripts)
        return self.url + path

    def connect(self, *acts: Act) -> None:
        """Set what happens to the next connections, in order, before any request is read."""
        with self._lock:
            self._connections += acts

    def forget(self) -> None:
        """Remove all scripts."""
        with self._lock:
            self._scripts.clear()

    def asked(self, path: str) -> list[Any]:
        """The requests that a path received."""
        with self._lock:
            return [one for one in self.received if one.path == path]

    def count(self, path: str) -> int:
        """How many requests a path received."""
        return len(self.asked(path))

    def wait(self, path: str, count: int, timeout: float = 30) -> list[Any]:
        """The requests of a path as soon as there are so many."""
        wait_until(lambda: self.count(path) >= count, timeout, lambda: self.asked(path))
        return self.asked(path)

    def next_connection(self) -> Act | None:
        with self._lock:
            return self._connections.pop(0) if self._connections else None

    def take(self, received: Received) -> Reply:
        """Record a request and return its response."""
        with self._lock:
            self.received.append(received)
            self.busy += 1
            waiting = self._scripts.get(received.path) or self._by_prefix(received.path)
            script = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(script, bytes):
            return Reply(200, script)
        return script if isinstance(script, Reply) else script(received)

    def done(self) -> None:
        """A request of `take` has been answered."""
        with self._lock:
            self.busy -= 1

    def _by_prefix(self, path: str) -> list[Script]:
        found = [each for each in self._scripts if each.endswith("*") and path.startswith(each[:-1])]
        return self._scripts[max(found, key=len)] if found else [self.default]


S = TypeVar("S", bound=Scripted)


@contextmanager
def scripted(tls: ssl.SSLContext | None = None) -> Iterator[Scripted]:
    """Run a scripted server for a block."""
    with run(Scripted, tls) as server:
        yield server


@contextmanager
def run(kind: type[S], tls: ssl.SSLContext | None = None) -> Iterator[S]:
    """Run a scripted server of a subclass for a block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = _IDLE
        disable_nagle_algorithm = True

        def handle(self) -> None:
            act = server.next_connection()
            with contextlib.suppress(OSError):  # The client may have closed the connection.
                if act is not None:
                    act(Connection(self.connection, server.ends))
                else:
                    super().handle()

        def _any(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            length = int(headers.get("content-length") or 0)
            body = self.rfile.read(length)
            if len(body) < length:
                return  # The client was killed during the request.
            port = self.client_address[1]
            request = server.request_type(self.command, self.path, headers, body, port, time.monotonic())
            reply = server.take(request)
            try:
                if pause := server.delay + reply.delay:
                    server.ends.wait(pause)
                if reply.act is None:
                    self._respond(reply)
                else:
                    self.close_connection = True
                    reply.act(Connection(self.connection, server.ends))
            finally:
                server.done()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

        def _respond(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *args: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 512  # Five by default; the sixth connection at the same time would wait for a second.

        def handle_error(self, *args: Any) -> None: ...

    listening = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        listening.socket = tls.wrap_socket(listening.socket, server_side=True, do_handshake_on_connect=False)
    server = kind(f"{'http' if tls is None else 'https'}://127.0.0.1:{listening.server_port}")
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ends.set()
        listening.shutdown()
        listening.server_close()
        thread.join(5)


def unused_port() -> int:
    """A port of loopback on which no server listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def nowhere() -> str:
    """A URL on which no server listens."""
    return f"http://127.0.0.1:{unused_port()}"
