"""Runs the server in one process or in several."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections.abc import Iterable
from importlib import import_module
from types import FrameType
from typing import Any, Final

import structlog
import uvicorn
from uvicorn.config import STARTUP_FAILURE

from ccp.cli.supervisor import Supervisor
from ccp.server.metrics import worker_ended

_log: Final = structlog.get_logger("ccp.workers")


def run(app: str, bound: socket.socket, *, preload: Iterable[str] = (), **options: Any) -> None:
    """Serve until a signal stops the process.

    app: "module:function" that builds the application. bound: the port, not yet listening. preload: further modules
    that the workers share. options: as for `uvicorn.run`.
    """
    config = uvicorn.Config(app, **options)
    if config.workers > 1:

        def prepare() -> None:
            for name in (app.partition(":")[0], *preload):
                import_module(name)

        if status := Supervisor(config, [bound], prepare=prepare, on_worker_exit=worker_ended).run():
            sys.exit(status)  # Otherwise a service manager would regard it as a regular exit.
    else:
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, _decline_reload)
        server = uvicorn.Server(config)
        with contextlib.suppress(KeyboardInterrupt):
            server.run([bound])
        if not server.started:
            sys.exit(STARTUP_FAILURE)


def _decline_reload(number: int, frame: FrameType | None) -> None:
    """Go on at SIGHUP, whose default is to end the process: with one worker there is none to take over meanwhile."""
    _log.warning("reload declined", reason="With one worker, settings take effect after a restart.")
