"""Runs the server in one process or in several."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from types import FrameType
from typing import Any, Final

import structlog
import uvicorn
from uvicorn.config import STARTUP_FAILURE

from ccp.cli.supervisor import Hooks, Supervisor

_log: Final = structlog.get_logger("ccp.workers")


def run(app: str, bound: socket.socket, *, hooks: Hooks | None = None, **options: Any) -> None:
    """Serve until a signal stops the process.

    app: "module:function" that builds the application, which handles SIGHUP itself. bound: the port, not yet listening.
    hooks: of the parent of several workers. options: as for `uvicorn.run`.
    """
    config = uvicorn.Config(app, **options)
    if config.workers > 1:
        if status := Supervisor(config, [bound], hooks or Hooks()).run():
            sys.exit(status)  # Otherwise a service manager would regard it as a regular exit.
    else:
        if hasattr(signal, "SIGUSR2"):
            signal.signal(signal.SIGUSR2, _decline_replacement)
        server = uvicorn.Server(config)
        with contextlib.suppress(KeyboardInterrupt):
            server.run([bound])
        if not server.started:
            sys.exit(STARTUP_FAILURE)


def _decline_replacement(number: int, frame: FrameType | None) -> None:
    """Go on at SIGUSR2, whose default is to end the process: with one worker there is none to take over meanwhile."""
    _log.warning("worker replacement declined", reason="With one worker, restart the pool instead.")
