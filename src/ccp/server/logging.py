"""Log events: one per line on standard error, as JSON or as readable text, with long ids shortened to their owner.

In the journal of systemd each line begins with its priority, `<N>` (sd-daemon(3)), which the journal removes. Readable
text there has no time, because the journal has its own; a JSON object keeps its time for programs that read it alone.

Invisible characters are escaped in both formats, and credentials in URLs are hidden.

Lines of one iteration of the event loop are written together, because under load the write is most of a line's cost.
Errors are written at once, and so are all lines outside of an event loop.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TextIO

import orjson
import structlog

from ccp.ids import mask_ids
from ccp.server.runtime.redacted_urls import hide_in_text
from ccp.server.runtime.terminal_text import printable, printable_json
from ccp.server.settings import Settings

_SENTENCES: Final = ("reason", "reasons", "cause", "warning", "warnings", "said")
"""Members of log events that contain sentences, which may contain ids."""
_MAX_ATOMIC_WRITE: Final = 4096  # Bytes that a pipe writes atomically (PIPE_BUF), so that workers' lines do not mix.


class LineWriter:
    """The logger at the end of structlog's chain: writes rendered lines."""

    def __init__(self, file: TextIO) -> None:
        self._file: Final = file
        self._lock: Final = threading.RLock()  # Reentrant: a signal handler may log while a line is written.
        self._waiting: list[str] = []
        self._flushing: asyncio.AbstractEventLoop | None = None
        atexit.register(self.flush)

    def msg(self, line: str) -> None:
        """Queue a line for the end of the event loop's iteration; write it at once outside of a loop."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.write_now(line)
            return
        with self._lock:
            self._waiting.append(line)
            if self._flushing is not loop:
                self._flushing = loop
                loop.call_soon(self.flush)

    debug = info = warning = msg

    def write_now(self, line: str) -> None:
        """Write a line at once, after the queued ones."""
        with self._lock:
            self._waiting.append(line)
        self.flush()

    error = critical = write_now

    def flush(self) -> None:
        """Write the queued lines in chunks that a pipe writes atomically. An error loses them, and nothing else.

        A full disk, or a pipe whose reader has gone, must not fail a request or end the parent of the workers.
        """
        with self._lock:
            waiting, self._waiting, self._flushing = self._waiting, [], None
            part = b""
            for data in [f"{line}\n".encode(errors="backslashreplace") for line in waiting]:
                if part and len(part) + len(data) > _MAX_ATOMIC_WRITE:
                    self._write(part)
                    part = b""
                part += data
            if part:
                self._write(part)

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._file.write(data.decode())
            self._file.flush()


def configure(config: Settings) -> None:
    """Configure structlog for this process."""
    lines = LineWriter(sys.stderr)
    readable, journal = config.log_format == "console", is_journal(sys.stderr)
    console = structlog.dev.ConsoleRenderer(colors=readable and sys.stderr.isatty())
    set_level(config)
    structlog.configure(
        processors=[
            _completed,
            *((_without_time,) if readable and journal else ()),
            partial(_as_text, console) if readable else _as_json,
            *((_prioritised,) if journal else ()),
        ],
        wrapper_class=_Logger,
        logger_factory=lambda *args: lines,
        cache_logger_on_first_use=True,
    )


class _Logger(structlog.make_filtering_bound_logger(logging.INFO)):  # type: ignore[misc]  # made at run time
    """The class of all loggers. Loggers are cached, so its base is what a change of the level replaces."""


def set_level(config: Settings) -> None:
    """Log events from `log_level` on, also in loggers that were used before."""
    _Logger.__bases__ = (structlog.make_filtering_bound_logger(getattr(logging, config.log_level.upper())),)


def is_journal(file: TextIO) -> bool:
    """Whether a file is the connection to the journal that systemd names in JOURNAL_STREAM (systemd.exec(5))."""
    try:
        status = os.fstat(file.fileno())
    except (OSError, ValueError):  # Not a file of the system.
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""RFC 5424 clause 6.2.1."""


def _prioritised(logger: Any, level: str, line: str) -> str:
    """Begin every line of an event, as of a traceback, with its priority: the journal stores lines."""
    prefix = f"<{_PRIORITIES.get(level, 6)}>"
    return prefix + line.replace("\n", f"\n{prefix}")


def _without_time(logger: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    del event["timestamp"]
    return event


def _completed(logger: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add level, time and traceback; shorten long ids in sentences."""
    event["level"] = level
    for name in _SENTENCES:
        value = event.get(name)
        if isinstance(value, str):
            event[name] = _masked(value)
        elif isinstance(value, tuple | list):
            event[name] = [_masked(str(item)) for item in value]
    event["timestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if "exc_info" in event:
        event = mask_exception(structlog.processors.format_exc_info(logger, level, event))
    return event


def _masked(text: str) -> str:
    """Remove credentials, then ids: in this order, because the name of a URL parameter may be as long as an id."""
    return mask_ids(hide_in_text(text))


def _as_json(logger: Any, level: str, event: MutableMapping[str, Any]) -> str:
    try:
        line = orjson.dumps(event, default=str).decode()
    except TypeError:  # A lone surrogate, which external JSON may contain and UTF-8 cannot.
        line = orjson.dumps(_for_each_text(event, printable), default=str).decode()
    if "://" in line and ("@" in line or "=" in line):
        line = orjson.dumps(_for_each_text(orjson.loads(line), hide_in_text)).decode()
    return printable_json(line)


def _as_text(render: structlog.dev.ConsoleRenderer, logger: Any, level: str, event: MutableMapping[str, Any]) -> str:
    shown = {name: _for_each_text(value, _printable) for name, value in event.items()}
    if isinstance(exception := event.get("exception"), str):
        # The lines of a traceback are indented, so that none of them looks like a separate event.
        shown["exception"] = "\n    ".join(map(_printable, exception.split("\n")))
    return str(render(logger, level, shown))


def _printable(text: str) -> str:
    return printable(hide_in_text(text))


def _for_each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Apply a function to each string of a log event."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_for_each_text(name, change): _for_each_text(member, change) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_for_each_text(member, change) for member in value]
    return value


def mask_exception(event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Shorten ids in a traceback. Other long words there rarely contain a digit."""
    if isinstance(event.get("exception"), str):
        event["exception"] = _LONG_WITH_DIGIT.sub(lambda found: found[0][:5] + "…", event["exception"])
    return event


_LONG_WITH_DIGIT: Final = re.compile(r"\b(?=\w*\d)\w{14,}")
