"""OCSP responders on loopback: OpenSSL's, and one with scripted responses."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ccp.testing.pki import Credential


@dataclass
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Reply:
    """drip: seconds between two bytes. endless: zeros for as long as the client reads."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    drip: float = 0.0
    delay: float = 0.0
    endless: bool = False


@dataclass
class Server:
    """answers: by path. seen: every request, in order."""

    url: str
    answers: dict[str, Callable[[Request], Reply]] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)

    def count(self, path: str) -> int:
        return sum(1 for request in self.seen if request.path == path)

    def says(self, path: str, reply: Reply | bytes) -> str:
        """Answer a path with this. Returns its address."""
        self.answers[path] = lambda request: reply if isinstance(reply, Reply) else Reply(reply)
        return self.url + path


@contextmanager
def http_server() -> Iterator[Server]:
    stopping = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            request = Request(
                self.command,
                self.path,
                {name.lower(): value for name, value in self.headers.items()},
                self.rfile.read(length),
            )
            server.seen.append(request)
            reply = server.answers.get(self.path, lambda request: Reply(status=404))(request)
            stopping.wait(reply.delay)
            try:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if not reply.endless:
                    self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                if reply.endless:
                    while not stopping.is_set():
                        self.wfile.write(bytes(65536))
                for octet in reply.body if reply.drip else b"":
                    self.wfile.write(bytes((octet,)))
                    self.wfile.flush()
                    if stopping.wait(reply.drip):
                        break
                if not reply.drip:
                    self.wfile.write(reply.body)
            except OSError:
                pass  # The client has had enough, which is what some tests are about.

        do_GET = do_POST = _answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Listening(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 128  # Five by default; the sixth connection at the same time would wait for a second.

    listening = Listening(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{listening.server_port}")
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        stopping.set()
        listening.shutdown()
        listening.server_close()
        thread.join(5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def openssl_responder(
    folder: Path,
    issuer: Credential,
    statuses: Mapping[int, datetime | None],
    *,
    responder: Credential | None = None,
    port: int | None = None,
) -> Iterator[str]:
    """`openssl ocsp` for one CA, for as long as the block lasts. Yields its address.

    statuses: serial number to the time of revocation, None for the status good; others are unknown to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    signer = responder or issuer
    (folder / "ca.pem").write_bytes(issuer.certificate.pem())
    (folder / "signer.pem").write_bytes(signer.certificate.pem())
    key = signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "signer.key").write_bytes(key)
    lines = [
        f"{'V' if when is None else 'R'}\t491231235959Z\t{'' if when is None else f'{when:%y%m%d%H%M%SZ}'}"
        f"\t{_even(serial)}\tunknown\t/CN={serial}"
        for serial, when in statuses.items()
    ]
    (folder / "index.txt").write_text("\n".join(lines) + "\n")
    port = port or free_port()
    command = [
        "openssl", "ocsp", "-port", str(port), "-index", "index.txt", "-CA", "ca.pem", "-rsigner", "signer.pem",
        "-rkey", "signer.key", "-nmin", "60", "-nrequest", "500", "-timeout", "30",
    ]  # fmt: skip
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        _wait_for(port, process, folder / "log.txt")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        # Not by connecting: that would be its first request, and it serves one after another.
        if b"ACCEPT" in log.read_bytes():
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"openssl ocsp did not start: {log.read_text()}")
        time.sleep(0.02)


def _even(serial: int) -> str:
    text = f"{serial:X}"
    return text if len(text) % 2 == 0 else "0" + text
