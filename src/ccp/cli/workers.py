"""Several worker processes on one port."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from ccp.metrics import worker_ended


class Supervisor(Multiprocess):
    """The parent of the workers, as uvicorn has it, but for the end, of each and of all."""

    def terminate_all(self) -> None:
        """Tell the workers to end, and let go of the port.

        Each worker lets go of its own copy when it has drained. The parent's would outlive them all: whoever connects
        meanwhile would be let in by the system and never be answered.
        """
        super().terminate_all()
        for listening in self.sockets:
            listening.close()

    def keep_subprocess_alive(self) -> None:
        with self._replacing():
            super().keep_subprocess_alive()

    def restart_all(self) -> None:
        with self._replacing():
            super().restart_all()

    @contextmanager
    def _replacing(self) -> Iterator[None]:
        """Workers that are gone afterwards are not counted as living any more."""
        before = {process.pid for process in self.processes}
        yield
        for pid in before - {process.pid for process in self.processes}:
            if pid is not None:
                worker_ended(pid)


def run(app: str, **options: Any) -> None:
    """Serve until a signal comes. options: as `uvicorn.run` takes them."""
    config = uvicorn.Config(app, **options)
    if config.workers > 1:
        supervisor = Supervisor(config, [config.bind_socket()])
        supervisor.run()
        if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
            sys.exit(STARTUP_FAILURE)  # Else whoever supervises us takes it for an end in order.
    else:
        uvicorn.run(app, **options)
