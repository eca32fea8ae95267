"""Reads messages from files or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from ccp.errors import ConfigurationError


def read_input(file: str) -> bytes:
    """Read a file, or standard input for "-". Raises ConfigurationError."""
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"{file} cannot be read: {exc.strerror}.") from exc
