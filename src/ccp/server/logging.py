"""Log events: one a line on standard error, as JSON or for people, with long ids cut to their owner's.

What is not visible on a terminal is escaped in both forms, and credentials in URLs are hidden.

Lines of one turn of the event loop are written together: under load most of what a line costs is the writing. What
says that something failed is written at once, and so is everything outside of a loop.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
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

_TOLD: Final = ("reason", "reasons", "cause", "warning", "warnings", "said")
"""Members of log events that hold sentences, in which ids may be named."""
_WHOLE: Final = 4096  # Octets that a pipe takes as one (PIPE_BUF): lines of several workers do not run into each other.


class Lines:
    """A logger at the end of structlog's chain: takes finished lines."""

    def __init__(self, file: TextIO) -> None:
        self._file: Final = file
        self._lock: Final = threading.RLock()  # A signal's handler may have something to say in the midst of a line.
        self._waiting: list[str] = []
        self._flushing: asyncio.AbstractEventLoop | None = None
        atexit.register(self.flush)

    def msg(self, line: str) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.now(line)
            return
        with self._lock:
            self._waiting.append(line)
            if self._flushing is not loop:
                self._flushing = loop
                loop.call_soon(self.flush)

    debug = info = warning = msg

    def now(self, line: str) -> None:
        with self._lock:
            self._waiting.append(line)
        self.flush()

    error = critical = now

    def flush(self) -> None:
        """Write what waits, in parts that a pipe takes whole. What cannot be written is lost. Raises OSError."""
        with self._lock:
            waiting, self._waiting, self._flushing = self._waiting, [], None
            part = b""
            for octets in [f"{line}\n".encode(errors="backslashreplace") for line in waiting]:
                if part and len(part) + len(octets) > _WHOLE:
                    self._write(part)
                    part = b""
                part += octets
            if part:
                self._write(part)

    def _write(self, octets: bytes) -> None:
        self._file.write(octets.decode())
        self._file.flush()


def configure(config: Settings) -> None:
    lines = Lines(sys.stderr)
    for_people = config.log_format == "console"
    structlog.configure(
        processors=[_completed, partial(_for_people, structlog.dev.ConsoleRenderer()) if for_people else _as_json],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.log_level.upper())),
        logger_factory=lambda *args: lines,
        cache_logger_on_first_use=True,
    )


def _completed(logger: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """With level, time and what an exception says; long ids in sentences are cut."""
    event["level"] = level
    for name in _TOLD:
        value = event.get(name)
        if isinstance(value, str):
            event[name] = _masked(value)
        elif isinstance(value, tuple | list):
            event[name] = [_masked(str(each)) for each in value]
    event["timestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if "exc_info" in event:
        event = mask_exception(structlog.processors.format_exc_info(logger, level, event))
    return event


def _masked(text: str) -> str:
    """Without credentials and ids: in this order, since the name of a URL's parameter may be as long as an id."""
    return mask_ids(hide_in_text(text))


def _as_json(logger: Any, level: str, event: MutableMapping[str, Any]) -> str:
    try:
        line = orjson.dumps(event, default=str).decode()
    except TypeError:  # A lone surrogate, which JSON from elsewhere may hold and UTF-8 cannot.
        line = orjson.dumps(_for_each_text(event, printable), default=str).decode()
    if "://" in line and ("@" in line or "=" in line):
        line = orjson.dumps(_for_each_text(orjson.loads(line), hide_in_text)).decode()
    return printable_json(line)


def _for_people(render: structlog.dev.ConsoleRenderer, logger: Any, level: str, event: MutableMapping[str, Any]) -> str:
    shown = {name: _for_each_text(value, _shown_to_people) for name, value in event.items()}
    if isinstance(exception := event.get("exception"), str):
        # A traceback has several lines. They are indented, so that none of them looks like an event of its own.
        shown["exception"] = "\n    ".join(map(_shown_to_people, exception.split("\n")))
    return str(render(logger, level, shown))


def _shown_to_people(text: str) -> str:
    return printable(hide_in_text(text))


def _for_each_text(value: Any, change: Callable[[str], str]) -> Any:
    """A log event with each text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_for_each_text(name, change): _for_each_text(member, change) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_for_each_text(member, change) for member in value]
    return value


def mask_exception(event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What an exception says may name ids too. Names in a traceback are seldom long words with a digit in them."""
    if isinstance(event.get("exception"), str):
        event["exception"] = _LONG_WITH_DIGIT.sub(lambda found: found[0][:5] + "…", event["exception"])
    return event


_LONG_WITH_DIGIT: Final = re.compile(r"\b(?=\w*\d)\w{14,}")
