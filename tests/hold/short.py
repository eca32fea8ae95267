"""Run the short form of a subject of `bench/hold.py`.

Each subject has its own file `test_<subject>.py`, so that test processes share the work:

    def test_pool_holds() -> None:
        held("subject")
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def held(subject: str, timeout: float = 300) -> None:
    """Fail with the table if an aim is missed. timeout: seconds; a busy machine needs several times as long."""
    command = [sys.executable, "bench/hold.py", "--short", "--only", subject]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            printed, _ = process.communicate(timeout=timeout)
        except BaseException:
            process.terminate()  # It then ends the servers that it started.
            raise
    assert process.returncode == 0, printed
