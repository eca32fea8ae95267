"""Runs the server in one process or in several."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from types import FrameType
from typing import Any, Final

import structlog
import uvicorn
from uvicorn.config import STARTUP_FAILURE

from ccp.cli.supervisor import Supervisor
from ccp.server.metrics import worker_ended

_log: Final = structlog.get_logger("ccp.workers")


def run(
    app: str,
    bound: socket.socket,
    *,
    preload: Iterable[str] = (),
    reload: Callable[[uvicorn.Config], bool] = lambda config: True,
    **options: Any,
) -> None:
    """Serve until a signal stops the process.

    app: "module:function" that builds the application, which handles SIGHUP itself. bound: the port, not yet listening.
    preload: further modules that the workers share. reload: called with several workers at SIGHUP, before they receive
    it; changes the configuration of workers that start later, and returns False if the workers are not to reload.
    options: as for `uvicorn.run`.
    """
    config = uvicorn.Config(app, **options)
    if config.workers > 1:

        def prepare() -> None:
            for name in (app.partition(":")[0], *preload):
                import_module(name)

        supervisor = Supervisor(
            config, [bound], prepare=prepare, on_worker_exit=worker_ended, reload=lambda: reload(config)
        )
        if status := supervisor.run():
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
