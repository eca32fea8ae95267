"""What the parent of several workers hands over to each of them: settings, and the files that a start needs.

The parent checks the files, keeps their contents in memory, and follows their changes. A worker that replaces one that
died starts with the settings of the others and with the contents that were checked last, whatever is on disk by then
(docs/decisions/0039).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Final

import structlog
from uvicorn import Config

from ccp.cli import startup
from ccp.cli.supervisor import Hooks
from ccp.errors import ConfigurationError
from ccp.server import logging, reloading, settings
from ccp.server.http.uvicorn_options import uvicorn_options
from ccp.server.metrics import worker_ended
from ccp.server.reloading import SettingsReloader
from ccp.server.runtime import start_files
from ccp.server.runtime.start_files import FileState, StartFile
from ccp.server.settings import Settings
from ccp.server.settings.reloading import replacing
from ccp.server.storage.engine import schema

_log: Final = structlog.get_logger("ccp.workers")

LOOK_INTERVAL: Final = 2.0
"""Seconds between two looks at the files."""


@dataclass(frozen=True, slots=True)
class Handover:
    """Settings and files of one worker.

    tls: settings that name the TLS files to serve with: other ones than `settings` while its files cannot be used.
    files: contents by path, private keys among them.
    """

    settings: Settings
    tls: Settings
    files: Mapping[Path, StartFile]

    def __call__(self) -> None:
        """Take them over, in the worker."""
        reloading.hand_over(self.settings)
        start_files.use(self.files)


def _unexpected(exc: Exception) -> str:
    """A sentence without the text of the error, which may hold content of a file."""
    return f"A file is unusable: {type(exc).__name__}."


class StartKeeper:
    """Keeps the settings and files with which workers start."""

    def __init__(self, settings: Settings, check: Callable[[Settings], None]) -> None:
        """check: reads every file that the start of a worker reads; raises ConfigurationError.

        Raises ConfigurationError.
        """
        self._check: Final = check
        self._current = Handover(settings, settings, {})
        self._proven: Handover | None = None
        self._failed: Handover | None = None
        self._tried: dict[Path, FileState | None] = {}
        self._seen: dict[Path, FileState | None] = {}
        self._looked_at = time.monotonic()
        self._problems: tuple[str, ...] = ()
        self.verify(settings)

    def verify(self, settings: Settings) -> None:
        """Check and keep the files of some settings. Raises ConfigurationError; then the former contents stay."""
        read: Mapping[Path, StartFile] = {}
        try:
            with start_files.recording() as read:
                self._check(settings)
        except Exception as exc:  # Another error would stop the parent, and all workers with it.
            # A local name of the raised error makes a cycle: its frames keep descriptors of ended workers open.
            self._problems = exc.messages if isinstance(exc, ConfigurationError) else (_unexpected(exc),)
            self._tried |= {path: file.state for path, file in read.items()}
            raise ConfigurationError(*self._problems) from exc
        else:
            self._current, self._problems = Handover(settings, settings, read), ()
            self._tried = {path: file.state for path, file in read.items()}
        finally:
            self._seen = dict(self._tried)

    def change(self, settings: Settings) -> None:
        """Let workers start with other settings. Their files count as soon as they can be used."""
        try:
            self.verify(settings)
        except ConfigurationError:  # Workers in use log what they cannot reload.
            self._current = replace(self._current, settings=settings)

    def look(self) -> None:
        """Check the files again if they have changed, and then stayed the same for one interval."""
        if time.monotonic() - self._looked_at < LOOK_INTERVAL:
            return
        self._looked_at = time.monotonic()
        states = {path: start_files.state_on_disk(path) for path in self._tried}
        if states == self._seen and states != self._tried:
            self._check_again()
        else:
            self._seen = states

    def handover(self) -> Handover:
        """Return what a worker gets that starts now. Files that cannot be used are one log event."""
        if self._problems or any(start_files.state_on_disk(path) != state for path, state in self._tried.items()):
            self._check_again()
        handed, problems = self._current, self._problems
        if self._failed is handed and self._proven is not None:
            handed, problems = self._proven, ("A worker that got the changed settings or files did not start.",)
        if problems:
            _log.error("worker starts with kept files", problems=list(problems))
        return handed

    def ready(self, handed: Handover) -> None:
        """Note that a worker became ready with what it got."""
        self._proven = handed

    def failed(self, handed: Handover) -> None:
        """Note that a worker did not start: the next one gets what an earlier worker became ready with.

        If that one fails too, the cause is another, and the newest is tried again.
        """
        self._failed = None if handed is self._proven else handed

    def _check_again(self) -> None:
        with contextlib.suppress(ConfigurationError):
            self.verify(self._current.settings)


class PoolHooks(Hooks):
    """The parent of a pool's workers."""

    def __init__(self, prepare_folder: Callable[[], None]) -> None:
        """prepare_folder: creates what is missing of the files that workers share. Raises ConfigurationError."""
        current = settings.load()  # With the options of the command line, which are in the environment.
        self._prepare_folder = prepare_folder
        self._keeper = StartKeeper(current, startup.check_worker_files)
        self._reloader = SettingsReloader(current, logging.set_level)

    def prepare(self, config: Config) -> None:
        """Import the application and the driver of its database."""
        super().prepare(config)
        engine = "postgres" if schema.is_postgres(self._reloader.current.database) else "sqlite"
        import_module(f"ccp.server.storage.engine.{engine}")

    def handover(self, config: Config) -> Handover:
        """Return the settings in use, and the files that were checked last."""
        try:
            self._prepare_folder()
        except (ConfigurationError, OSError) as exc:
            _log.error("shared files not created", reason=str(exc))
        handed = self._keeper.handover()
        for name, value in uvicorn_options(handed.tls).items():
            if name.startswith("ssl_"):
                setattr(config, name, value)
        return handed

    def look(self) -> None:
        """Follow changes of the files."""
        self._keeper.look()

    def worker_ready(self, handed: Callable[[], None]) -> None:
        """Rely on what the worker got."""
        if isinstance(handed, Handover):
            self._keeper.ready(handed)

    def start_failed(self, handed: Callable[[], None]) -> None:
        """Let the next worker have what an earlier one became ready with."""
        if isinstance(handed, Handover):
            self._keeper.failed(handed)

    def worker_exited(self, pid: int) -> None:
        """Keep what the worker has counted."""
        worker_ended(pid)

    def reload(self) -> bool:
        """Read the settings; workers that start later get them. Their files are checked before a worker starts."""
        usable = self._reloader.reload()
        self._keeper.change(self._reloader.current)
        return usable

    def renew(self) -> bool:
        """Read all settings for the workers that replace the others; settings that cannot be used replace none."""
        try:
            found = replacing(self._reloader.current, settings.load())
            self._keeper.verify(found)
        except Exception as exc:  # It would stop the parent, and all workers with it.
            problems = exc.messages if isinstance(exc, ConfigurationError) else (_unexpected(exc),)
            _log.error("workers not replaced", problems=list(problems))
            return False
        self._reloader = SettingsReloader(found, logging.set_level)
        logging.set_level(found)
        return True
