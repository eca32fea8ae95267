"""Log events of one module, as a test reads them.

`structlog.testing.capture_logs` misses the loggers that a pool in the same process has already used: these keep the
processors of its configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import structlog
from structlog.testing import LogCapture


@contextmanager
def captured_logs(module: ModuleType) -> Iterator[list[Any]]:
    """Collect what a module logs with its `_log` meanwhile: a mapping for each event."""
    capture = LogCapture()
    logger = structlog.wrap_logger(None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0))
    with patch.object(module, "_log", logger):
        yield capture.entries
