"""Runs a pool on a loopback port inside this process, for the duration of a `with` block."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn

from ccp.errors import Unavailable
from ccp.server import app
from ccp.server.http.uvicorn_options import uvicorn_options
from ccp.server.settings import Settings
from ccp.server.storage.snapshot_refresh import REFRESH_INTERVAL

_START_TIMEOUT: Final = 10.0  # Seconds.


@contextmanager
def loopback() -> Iterator[tuple[socket.socket, str]]:
    """Open a listening socket on a free port of 127.0.0.1. Yields it and its URL."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        yield listening, f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def running(
    settings: Settings, listening: socket.socket, *, refresh_interval: float = REFRESH_INTERVAL
) -> Iterator[None]:
    """Serve until the block ends. Raises Unavailable when the server does not start.

    refresh_interval: seconds until changes of other processes take effect.
    """
    application = app.create_app(settings, refresh_interval=refresh_interval)
    server = uvicorn.Server(uvicorn.Config(application, log_level="error", **uvicorn_options(settings)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="pool", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + _START_TIMEOUT
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise Unavailable("The server did not start.")
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join(_START_TIMEOUT)
