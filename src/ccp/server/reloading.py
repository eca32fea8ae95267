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
        """current: the settings in use. apply: called with the new effective settings; must not raise. load: raises
        ConfigurationError.
        """
        self._current = current
        self._apply: Final = apply
        self._load: Final = load
        self._has_parent = multiprocessing.parent_process() is not None

    @property
    def current(self) -> Settings:
        """The settings in use."""
        return self._current

    def reload(self) -> bool:
        """Reload and log the outcome. Returns False if the file is unusable: then everything stays as it is."""
        try:
            result = merge(self._current, self._load())
        except ConfigurationError as exc:
            _log.error("settings not reloaded", problems=list(exc.messages))
            return False
        self._current = result.effective
        for apply in self._apply:
            apply(result.effective)
        names = {"changed": list(result.changed), "needs_restart": list(result.needs_restart)}
        if self._has_parent:
            _log.debug("settings reloaded", **names)
        else:
            _log.info("settings reloaded", **names)
        return True


def hold_signal() -> None:
    """Hold SIGHUP until `on_signal` handles it, so that one that arrives during the start is not lost."""
    if hasattr(signal, "SIGHUP"):
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))


@contextmanager
def on_signal(reload: Callable[[], Any]) -> Iterator[None]:
    """Call `reload` in the running event loop at each SIGHUP. For the main thread, after `hold_signal`."""
    if not hasattr(signal, "SIGHUP"):
        yield
        return
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGHUP, lambda number, frame: loop.call_soon_threadsafe(reload))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP,))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
