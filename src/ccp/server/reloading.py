"""Reload of settings and TLS files at SIGHUP, in place: no process is replaced and no connection is closed.

Each worker reloads for itself. With several workers their parent reads the file first, and passes the signal on only if
the file is usable, so that an unusable file is one log event (docs/decisions/0032).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any, Final

import structlog

from ccp.errors import ConfigurationError
from ccp.server import settings
from ccp.server.settings import Settings
from ccp.server.settings.reloading import merge

_log: Final = structlog.get_logger("ccp.server.reloading")


class SettingsReloader:
    """Reads the settings again, and applies those that are reloadable."""

    def __init__(
        self, current: Settings, *apply: Callable[[Settings], None], load: Callable[[], Settings] = settings.load
    ) -> None:
        """current: the settings in use. apply: called with the new ones. load: raises ConfigurationError."""
        self._current = current
        self._apply: Final = apply
        self._load: Final = load
        self._has_parent = multiprocessing.parent_process() is not None

    @property
    def current(self) -> Settings:
        """The settings in use."""
        return self._current

    def reload(self) -> bool:
        """Reload and log the outcome. Returns False if the file is unusable: then everything stays as it is.

        Nothing is raised: an error here would stop the parent, and all workers with it.
        """
        try:
            result = merge(self._current, self._load())
        except ConfigurationError as exc:
            _log.error("settings not reloaded", problems=list(exc.messages))
            return False
        except Exception as exc:  # Such as RecursionError for a file of nested brackets.
            _log.exception("settings not reloaded", problems=[f"The settings cannot be read: {type(exc).__name__}."])
            return False
        self._current = result.effective
        for apply in self._apply:
            try:
                apply(result.effective)
            except Exception:
                _log.exception("reloaded settings not applied")
        names = {"changed": list(result.changed), "needs_restart": list(result.needs_restart)}
        if self._has_parent:
            _log.debug("settings reloaded", **names)
        else:
            _log.info("settings reloaded", **names)
        return True


_HANDED_OVER: Final[ContextVar[Settings | None]] = ContextVar("handed_over", default=None)


def hand_over(config: Settings) -> None:
    """Set the settings of this worker. Its parent has checked them, and the files may be others by now."""
    _HANDED_OVER.set(config)


def settings_of_worker() -> Settings:
    """Return the settings that the parent handed over, else those of file and environment.

    Raises ConfigurationError.
    """
    return _HANDED_OVER.get() or settings.load()


def hold_signal() -> None:
    """Hold SIGHUP until `on_signal` handles it, so that one that arrives during the start is not lost."""
    if hasattr(signal, "SIGHUP"):
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))


@contextmanager
def on_signal(reload: Callable[[], Any]) -> Iterator[None]:
    """Call `reload` in the running event loop after SIGHUP. For the main thread, after `hold_signal`.

    Signals that arrive before a reload begins are one: many of them do not keep the loop from its requests.
    """
    if not hasattr(signal, "SIGHUP"):
        yield
        return
    loop = asyncio.get_running_loop()
    waiting = False

    def received(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        if not waiting:
            waiting = True
            loop.call_soon_threadsafe(begin)

    def begin() -> None:
        nonlocal waiting
        waiting = False  # From here on a signal may mean that the files changed after they were read.
        reload()

    signal.signal(signal.SIGHUP, received)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP,))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
