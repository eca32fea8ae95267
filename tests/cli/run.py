"""Runs `ccp` commands for tests, in this process or as a process of their own."""

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

from ccp.cli import main, output

SOURCE = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "from ccp.cli import main; main()"]


@dataclass
class CommandResult:
    """Exit status and output of a command. out_bytes: standard output as written."""

    status: int
    out_bytes: bytes
    err: str

    @property
    def out(self) -> str:
        return self.out_bytes.decode()

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.out.splitlines()]


def environment(**changes: str) -> dict[str, str]:
    """The environment without settings of the pool, plus `changes`. Servers build no documentation at their start."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CCP_")}
    return kept | {"CCP_DOCUMENTATION": "false"} | changes


def ccp(*arguments: object, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> CommandResult:
    """Run a command in this process, which saves a second of imports."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    given = io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
    status: Any = 0
    # A sandbox in the checkout belongs to the developer.
    sandbox = Path(os.devnull) if Path.cwd() == SOURCE else output.SANDBOX
    with (
        patch.object(output, "SANDBOX", sandbox),
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
    return CommandResult(status, out.buffer.getvalue(), err.buffer.getvalue().decode())  # type: ignore[attr-defined]


def ccp_ok(*arguments: object, **how: Any) -> CommandResult:
    """Run a command that must succeed."""
    result = ccp(*arguments, **how)
    assert result.status == 0, result.err
    return result


def ccp_error(*arguments: object, **how: Any) -> str:
    """Run a command that must fail with one sentence on standard error and exit status 1; return the sentence."""
    result = ccp(*arguments, **how)
    assert result.status == 1, result
    assert result.out_bytes == b""
    (line,) = result.err.splitlines()
    assert line.startswith("ccp: ")
    return line.removeprefix("ccp: ")


def ccp_process(*arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own."""
    how = {"env": environment(), "capture_output": True, "text": True, "timeout": 120, **how}
    return subprocess.run([*COMMAND, *map(str, arguments)], check=False, **how)
