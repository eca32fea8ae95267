"""A hostile HTTP server in a separate process, so its own CPU cost does not affect the pool.

    with hostile_server() as url:       # url + "/interim", "/chunks", "/headers", …, see BEHAVIOURS

The path of a request selects the behaviour. Each response is endless, until the client closes the connection.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.scripted_server import Received, Reply, scripted, trickled

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


def behaviour(received: Received) -> Reply:
    """The behaviour that the first segment of a path names."""
    name = received.path.strip("/").split("/")[0]
    if name in SLOW:
        return trickled(HEAD + b"\r\n", b"x", SLOW[name])
    return trickled(*BEHAVIOURS[name], pause=0)


def serve(certificate: str | None) -> None:
    """Serve until standard input ends. Prints the port."""
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.num_tickets = 200
    with scripted(context) as server:
        server.on("*", behaviour)
        print(server.url.rpartition(":")[2], flush=True)
        sys.stdin.read()
        os._exit(0)  # Threads that send without an end do not delay the end.


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
