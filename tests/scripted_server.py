"""A scripted HTTP server on loopback: responses by path, in order; it records requests, and can delay, drop or garble.

with scripted() as server:
    server.on("/oauth/token", granted())                      # every time
    server.on("/opnc/v1/ccp/…", error(503), json_reply({}))   # first this, then that, which repeats
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TRACE_ID = "0b6f1c6e-54a5-4f57-a0a8-5f4f5fd0d0b1"


@dataclass
class Received:
    """A request. headers: names in lower case. connection: the client's port."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int = field(default=0, compare=False)


@dataclass
class Reply:
    """A response. act: handles the connection instead of a response. delay: seconds before the response."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    act: Callable[[Any, threading.Event], None] | None = None
    delay: float = 0.0


def json_reply(value: Any, status: int = 200, **headers: str) -> Reply:
    """A JSON response. headers: an underscore stands for a hyphen."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **named})


def error(status: int, *messages: str, **headers: str) -> Reply:
    """An error response of a pool."""
    body = {"errorMessages": list(messages) or ["No."], "traceId": TRACE_ID}
    return json_reply(body, status, X_Trace_Id=TRACE_ID, **headers)


def granted(token: str = "a-token", expires_in: Any = 3600, **more: Any) -> Reply:
    """A token response."""
    return json_reply({"access_token": token, "token_type": "Bearer", "expires_in": expires_in, **more})


def compressed(value: Any) -> Reply:
    """A JSON response with gzip."""
    return Reply(200, gzip.compress(json.dumps(value).encode()), {"Content-Encoding": "gzip"})


def _hang(handler: Any, ends: threading.Event) -> None:
    ends.wait(20)


def _drop(handler: Any, ends: threading.Event) -> None:
    """Reset the connection after reading the request."""
    # SO_LINGER of zero seconds makes close() send a reset.
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def _trickle(start: bytes, each: bytes) -> Callable[[Any, threading.Event], None]:
    def act(handler: Any, ends: threading.Event) -> None:
        handler.wfile.write(start)
        while not ends.wait(0.05):
            handler.wfile.write(each)

    return act


HANG = Reply(act=_hang)
DROP = Reply(act=_drop)
TRICKLED_HEAD = Reply(act=_trickle(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"))
TRICKLED_BODY = Reply(act=_trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "))
ENDLESS = Reply(act=lambda handler, ends: _pour(handler, ends))
NOT_HTTP = Reply(act=lambda handler, ends: handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n"))


def _pour(handler: Any, ends: threading.Event) -> None:
    """Send a body without end, as fast as the client reads."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while not ends.is_set():
        handler.wfile.write(b" " * 65_536)


class Scripted:
    """The server as a test sees it: its URL, its script and the requests that it received."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.received: list[Received] = []
        self.ends = threading.Event()
        self._replies: dict[str, list[Reply]] = {}
        self._lock = threading.Lock()

    def on(self, path: str, *replies: Reply) -> None:
        """Set the responses of a path, in order; the last one repeats. A path without responses gets 404."""
        self._replies[path] = list(replies)

    def next(self, received: Received) -> Reply:
        """Record a request and return its response."""
        with self._lock:
            self.received.append(received)
            waiting = self._replies.get(urlsplit(received.target).path, [Reply(404)])
            return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    def asked(self, path: str) -> list[Received]:
        """The requests that a path received."""
        return [one for one in self.received if urlsplit(one.target).path == path]


@contextmanager
def scripted(tls: ssl.SSLContext | None = None) -> Iterator[Scripted]:
    """Run a scripted server for a block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Limits how long a connection's thread outlives its test.
        timeout = 20

        def _any(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            reply = server.next(Received(self.command, self.path, headers, body, self.client_address[1]))
            with contextlib.suppress(OSError):  # The client may have closed the connection.
                if reply.act is not None:
                    self.close_connection = True
                    reply.act(self, server.ends)
                    return
                if reply.delay:
                    server.ends.wait(reply.delay)
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)

        do_GET = do_POST = do_PUT = do_DELETE = _any

        def log_message(self, *args: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *args: Any) -> None: ...

    listening = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        listening.socket = tls.wrap_socket(listening.socket, server_side=True, do_handshake_on_connect=False)
    server = Scripted(f"{'http' if tls is None else 'https'}://127.0.0.1:{listening.server_port}")
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ends.set()
        listening.shutdown()
        listening.server_close()
        thread.join(5)


def nowhere() -> str:
    """A URL on which no server listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
