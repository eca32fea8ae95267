"""A small application for workers: every answer is the process id of the worker. What it does at its start is told by
files in the folder `SMALL_APP`:

- `slow`: all workers but the first take until the file is gone;
- `broken`: the start fails;
- `dying`: the worker ends at once, before it is ready.

Each worker leaves a file `started-PID`, with the time of its start.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def create() -> Any:
    folder = Path(os.environ["SMALL_APP"])
    first = not list(folder.glob("started-*"))
    (folder / f"started-{os.getpid()}").write_text(str(time.monotonic()))
    while not first and (folder / "slow").exists():
        time.sleep(0.02)
    if (folder / "broken").exists():
        raise RuntimeError("a start that fails")
    if (folder / "dying").exists():
        os.kill(os.getpid(), signal.SIGKILL)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": str(os.getpid()).encode()})

    return application
