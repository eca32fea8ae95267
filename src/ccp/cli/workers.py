"""Serving with one process or with several."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import uvicorn

from ccp.cli.supervisor import Supervisor
from ccp.server.metrics import worker_ended


def run(app: str, *, preload: Iterable[str] = (), **options: Any) -> None:
    """Serve until a signal comes.

    app: "module:function", which makes the application. preload: modules that the workers share beside that one.
    options: as `uvicorn.run` takes them.
    """
    config = uvicorn.Config(app, **options)
    if config.workers > 1:

        def prepare() -> None:
            for name in (app.partition(":")[0], *preload):
                import_module(name)

        if status := Supervisor(config, [config.bind_socket()], prepare=prepare, ended=worker_ended).run():
            sys.exit(status)  # Otherwise a service manager takes it for a regular end.
    else:
        uvicorn.run(app, **options)
