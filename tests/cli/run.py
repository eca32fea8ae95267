"""The command line, called as from a shell."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ccp.cli import main

SOURCE = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "from ccp.cli import main; main()"]


@dataclass
class Done:
    """What a command left behind."""

    status: int
    octets: bytes
    err: str

    @property
    def out(self) -> str:
        return self.octets.decode()

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.out.splitlines()]


def environment(**changes: str) -> dict[str, str]:
    """The environment without any setting of ours, and these."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CCP_")} | changes


def ccp(*arguments: object, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Done:
    """Run a command within this process, which saves a second of imports each time."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    given = io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
    status: Any = 0
    with (
        patch.object(sys, "argv", ["ccp", *map(str, arguments)]),
        patch.object(sys, "stdin", given),
        patch.dict(os.environ, environment(**(env or {})), clear=True),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as exc:
            status = exc.code or 0
    for stream in (out, err):
        stream.flush()
    return Done(status, out.buffer.getvalue(), err.buffer.getvalue().decode())  # type: ignore[attr-defined]


def good(*arguments: object, **how: Any) -> Done:
    """Run a command that has to succeed."""
    done = ccp(*arguments, **how)
    assert done.status == 0, done.err
    return done


def told(*arguments: object, **how: Any) -> str:
    """The one sentence of a command that has to fail: on standard error, without traceback, status 1."""
    done = ccp(*arguments, **how)
    assert done.status == 1, done
    assert done.octets == b""
    (line,) = done.err.splitlines()
    assert line.startswith("ccp: ")
    return line.removeprefix("ccp: ")


def shell(*arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own."""
    how = {"env": environment(), "capture_output": True, "text": True, "timeout": 120, **how}
    return subprocess.run([*COMMAND, *map(str, arguments)], check=False, **how)
