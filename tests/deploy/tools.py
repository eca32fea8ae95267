"""Where the files of `deploy/` are, and how a tool is run on them; without the tool the test is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
DEPLOY: Final = ROOT / "deploy"


def tool(name: str) -> str:
    """The path of a tool: beside the interpreter, or on the search path."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: object, timeout: float = 120) -> str:
    """Run a tool; its output, both streams. Fails the test unless the exit status is 0."""
    first, *rest = (str(part) for part in command)
    done = subprocess.run([tool(first), *rest], capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
