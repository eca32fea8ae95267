"""Sizes of the containers in the processes of a running server.

with inspected(folder):                     # servers that are started within it answer
    with processes.serving(…) as server:
        sizes(folder, pid)                  # by container, see `rig.containers`
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rig.containers import Size

HERE = Path(__file__).parent


@contextmanager
def inspected(folder: Path) -> Iterator[None]:
    """folder: for sockets; its path is short."""
    path = os.pathsep.join((str(HERE / "inspected"), str(HERE.parent), os.environ.get("PYTHONPATH", "")))
    changed = {"PYTHONPATH": path.rstrip(os.pathsep), "OPNC_CCP_INSPECTED": str(folder)}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def sizes(folder: Path, pid: int) -> dict[str, Size]:
    """Raises OSError if the process has ended, ValueError if it cannot answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(120)
        connection.connect(str(folder / f"{pid}.sock"))
        return {name: Size(*value) for name, value in json.loads(connection.makefile("rb").read()).items()}
