"""Scripted HTTP server on loopback in place of an external service: it answers, refuses, hangs or drops.

with scripted_server() as fake:
    fake.answers["/rootcertificates"] = json_answer({...})   # by path, without the query; or "*"
    …
    assert fake.calls[0].headers["authorization"] == "Bearer …"
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from ccp.server.external.outbound import OutboundClient
from ccp.server.external.service_connection import ServiceConnection
from ccp.server.service_settings import ServiceSettings

T = TypeVar("T")


@dataclass
class Call:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass
class Reply:
    """status 0: the connection is closed without a response. seconds: delay before the response."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


HANG = Reply(seconds=30.0)
DROP = Reply(status=0)
NOT_HTTP = Reply(status=-1)

Answers = Reply | Callable[[Call], Reply]


def json_answer(value: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode())


def refusal(status: int, *messages: str) -> Reply:
    return json_answer({"errorMessages": list(messages), "traceId": "6c1b7a5e-3f0e-4c1f-9b39-9a8e1b1f7a10"}, status)


class ScriptedServer:
    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: dict[str, Answers] = {}
        self.calls: list[Call] = []
        self.ends = threading.Event()

    def reply(self, call: Call) -> Reply:
        self.calls.append(call)
        answer = self.answers.get(call.path, self.answers.get("*", Reply(404)))
        return answer(call) if callable(answer) else answer


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("content-length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            call = Call(self.command, parts.path, parse_qs(parts.query), headers, self.rfile.read(length))
            reply = fake.reply(call)
            if reply.seconds:
                fake.ends.wait(reply.seconds)
            if reply.status <= 0:
                if reply.status < 0:
                    self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            try:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.body:
                    self.send_header("Content-Type", reply.kind)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)
            except OSError:  # The client has gone.
                self.close_connection = True

        do_GET = do_POST = _any

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    fake = ScriptedServer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.ends.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def with_outbound(call: Callable[[OutboundClient], Awaitable[T]]) -> T:
    """Run a call with a new outbound client, within ten seconds."""

    async def run() -> T:
        outbound = OutboundClient()
        try:
            async with asyncio.timeout(10):
                return await call(outbound)
        finally:
            await outbound.close()

    return asyncio.run(run())


def unused_url() -> str:
    """A URL without a server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def connection(outbound: OutboundClient, url: str, name: str = "service", **members: Any) -> ServiceConnection:
    """A connection to a service. members: of its settings."""
    return ServiceConnection(outbound, ServiceSettings(url=url, **members), name)
