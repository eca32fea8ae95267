"""A webhook receiver on loopback that behaves well or badly, by path."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ccp.server.domain.subscriptions import Webhook
from tests.databases import sql

SECRET = "a secret of thirty-two characters"


@dataclass(frozen=True)
class Sent:
    """One request as it came. at: time.monotonic()."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event

    @property
    def kind(self) -> str:
        return str(self.event["eventType"])

    @property
    def pcid(self) -> str:
        return str(self.event["payload"]["pcid"])

    def is_signed(self, secret: str = SECRET) -> bool:
        """Whether all three headers are what a receiver computes with the published rule."""
        expected = hmac.new(secret.encode("utf-8"), self.body, hashlib.sha256).hexdigest()
        names = ("x-operator-signature", "payload-signature", "x-hubject-signature")
        single = tuple(self.headers[name] for name in names) == (f"sha256={expected}", expected, expected)
        return single and f"sha256={expected}" in self.headers["x-operator-signatures"].split(", ")


@dataclass
class Receiver:
    """url: up to the path. delay: seconds before each answer. HANG as a status: none until the receiver ends.

    busy: requests that were read and not answered yet.
    """

    url: str
    sent: list[Sent] = field(default_factory=list)
    _says: dict[str, list[int]] = field(default_factory=dict)
    _decides: dict[str, Callable[[Sent], int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    delay: float = 0
    busy: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def says(self, path: str, *statuses: int) -> None:
        """Set the statuses that a path answers with, in order; the last one repeats. The default is 200."""
        with self._lock:
            self._says[path] = list(statuses)

    def decides(self, path: str, status_of: Callable[[Sent], int]) -> None:
        """Let a function answer the requests to a path with a status."""
        with self._lock:
            self._decides[path] = status_of

    def take(self, sent: Sent) -> int:
        with self._lock:
            self.sent.append(sent)
            self.busy += 1
            if sent.path in self._decides:
                return self._decides[sent.path](sent)
            statuses = self._says.get(sent.path, [200])
            return statuses.pop(0) if len(statuses) > 1 else statuses[0]

    def done(self) -> None:
        with self._lock:
            self.busy -= 1

    def at(self, path: str) -> list[Sent]:
        with self._lock:
            return [sent for sent in self.sent if sent.path == path]

    def wait(self, path: str, count: int, seconds: float = 30) -> list[Sent]:
        """What came to a path, once that is so much."""
        until(lambda: len(self.at(path)) >= count, seconds, lambda: [sent.kind for sent in self.at(path)])
        return self.at(path)


HANG = 0


def until(true: Callable[[], bool], seconds: float = 30, describe: Callable[[], Any] = lambda: None) -> None:
    """Wait until `true` returns True. describe: gives the assertion message after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.01)


@contextmanager
def receiving() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if len(body) < int(self.headers["Content-Length"]):
                return  # The sender was killed during the request.
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = receiver.take(Sent(self.path, headers, body, time.monotonic()))
            if status == HANG:
                receiver.ended.wait(30)
                self.close_connection = True
                return
            try:
                time.sleep(receiver.delay)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
            finally:
                receiver.done()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # A killed sender has closed its connection.

    server = Server(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.ended.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


def webhook(url: str, client_id: str = "oem", *events: str, **more: Any) -> Webhook:
    """Return a subscription, by default to every event of a car maker."""
    fields: dict[str, Any] = {
        "id": str(uuid.uuid4()), "client_id": client_id, "url": url, "description": "",
        "events": events or ("oem.contract.created", "oem.contract.updated", "oem.contract.deleted"),
        "wmis": (), "provider_ids": (), "metadata": {}, "api_version": "v1", "enabled": True, "secret": SECRET,
        "created_at": datetime.now(UTC), "updated_at": datetime.now(UTC),
    }  # fmt: skip
    return Webhook(**{**fields, **more})


def states(url: str, webhook_id: str) -> list[tuple[str, int, int | None]]:
    """State, attempts and last status of a webhook's deliveries, the oldest event first."""
    return sql(
        url,
        "select state, attempts, last_status from delivery where webhook_id = ? order by created_at, pcid, rev, part",
        webhook_id,
    )
