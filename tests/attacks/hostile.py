"""A hostile HTTP server in a separate process, so its own CPU cost does not affect the pool.

    with hostile_server() as url:       # url + "/interim", "/chunks", "/headers", …, see BEHAVIOURS

The path of a request selects the behaviour. Each response is endless, until the client closes the connection.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

BEHAVIOURS: dict[str, tuple[bytes, bytes]] = {
    "interim": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2600),
    "hints": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 1600),
    "chunks": (CHUNKED, b"1\r\nx\r\n" * 10_900),
    "extensions": (CHUNKED, b"1;" + b"a" * 60_000 + b"\r\nx\r\n"),
    "trailers": (CHUNKED + b"0\r\n", b"a:b\r\n" * 13_000),
    "headers": (HEAD, b"a:b\r\n" * 13_000),
    "header": (HEAD + b"a: ", b"b" * 65_536),
    "folded": (HEAD + b"a: ", b"\r\n " * 21_000),
    "body": (HEAD + b"\r\n", bytes(65_536)),
    "bytes": (HEAD + b"\r\n", b"x"),
}
"""By path: what comes first, and what comes after it without an end."""
SLOW = {"drip": 0.02}
"""By path: seconds between one byte of a body and the next."""


def serve(certificate: str | None) -> None:
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.num_tickets = 200
    print(listening.getsockname()[1], flush=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        connection, _ = listening.accept()
        threading.Thread(target=_answer, args=(connection, context), daemon=True).start()


def _end_with_parent() -> None:
    sys.stdin.read()
    import os

    os._exit(0)


def _answer(connection: socket.socket, context: ssl.SSLContext | None) -> None:
    try:
        connection.settimeout(60)
        if context is not None:
            connection = context.wrap_socket(connection, server_side=True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = b""
        while b"\r\n\r\n" not in head:
            more = connection.recv(65536)
            if not more:
                return
            head += more
        name = head.split(b" ")[1].split(b"?")[0].strip(b"/").split(b"/")[0].decode()
        if name in SLOW:
            connection.sendall(HEAD + b"\r\n")
            while True:
                connection.sendall(b"x")
                time.sleep(SLOW[name])
        first, again = BEHAVIOURS[name]
        connection.sendall(first)
        while True:
            connection.sendall(again)
    except OSError:
        pass  # The client has had enough, which is what tests are about.
    finally:
        connection.close()


@contextmanager
def hostile_server(certificate: Path | None = None) -> Iterator[str]:
    """certificate: PEM with key and certificate, for TLS. Yields the server's address."""
    command = [sys.executable, "-m", "tests.attacks.hostile", *([str(certificate)] if certificate else [])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    serve(sys.argv[1] if len(sys.argv) > 1 else None)
