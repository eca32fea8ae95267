"""Waiting for a condition."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], object], timeout: float = 20, describe: Callable[[], object] = lambda: "not true"
) -> None:
    """Call the condition again and again until it is true.

    Raises AssertionError after timeout, in seconds. describe: what the error says beside that.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{describe()} within {timeout} s"
        time.sleep(0.02)
