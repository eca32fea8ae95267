"""Builds the documentation site while the pool serves, where the extra `docs` is installed (docs/decisions/0034).

`ccp serve` creates an anonymous file before it starts its workers, which inherit it. One worker starts a process of low
priority that builds the site into this file; a request never waits for it. The site lasts as long as the server, so it
is always that of the running release, and nothing needs a directory of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import os
import sys
import time
from typing import Final

import structlog

from ccp.server.http.documentation_site import SharedSite, SiteState
from ccp.server.settings import Settings

_log: Final = structlog.get_logger("ccp.server.documentation")

_GENERATOR: Final = "zensical"
_BUILDER: Final = "ccp.cli.documentation.builder"
_TIMEOUT: Final = 600.0  # Seconds; a build takes ten, and longer beside a busy pool.
_STOP_TIMEOUT: Final = 5.0
_POLL_INTERVAL: Final = 2.0
_REASON_LENGTH: Final = 400
_HINT: Final = (
    "Run `ccp docs build DIRECTORY` and set documentation_directory, or set documentation = false to serve none."
)
_KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TMP", "TEMP", "PYTHONPATH", "LD_LIBRARY_PATH")
"""Environment variables of the build. Settings and secrets of this pool do not belong into the documentation."""


def prepare(config: Settings) -> SharedSite | None:
    """Return the site that the workers share, or None if none is built. The parent calls this before its workers start.

    Worker processes that are not forked do not inherit the file. Each of them then builds a site of its own.
    """
    if not config.documentation or config.documentation_directory is not None:
        return None
    return _shared() if importlib.util.find_spec(_GENERATOR) is not None else None


def is_served(config: Settings) -> bool:
    """Whether the workers serve a site, prepared or built."""
    return config.documentation and (config.documentation_directory is not None or prepare(config) is not None)


@functools.cache
def _shared() -> SharedSite | None:
    try:
        return SharedSite.create()
    except OSError as exc:
        _not_built(exc.strerror or str(exc))
        return None


async def build(site: SharedSite) -> None:
    """Build the site unless another worker does; if that worker ends without a result, build it after all."""
    while site.state() is SiteState.BUILDING:
        if site.claim():
            await _build(site)
        else:
            await asyncio.sleep(_POLL_INTERVAL)


async def _build(site: SharedSite) -> None:
    began = time.monotonic()
    reason = await _run(site)
    if site.state() is SiteState.READY:
        size = os.fstat(site.descriptor).st_size
        _log.info("documentation built", seconds=round(time.monotonic() - began, 1), bytes=size)
    else:
        site.fail()
        _not_built(reason)


async def _run(site: SharedSite) -> str:
    """Run the process to its end. Returns why it failed, if it did."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", _BUILDER, str(site.descriptor)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(site.descriptor,),
            env={name: os.environ[name] for name in _KEPT if name in os.environ},
        )
    except OSError as exc:
        return f"The process cannot be started: {exc.strerror or exc}."
    try:
        async with asyncio.timeout(_TIMEOUT):
            _, errors = await process.communicate()
    except TimeoutError:
        return f"It took longer than {_TIMEOUT:g} seconds."
    finally:
        if process.returncode is None:
            await _stop(process)
    text = errors.decode("utf-8", "replace").strip()
    return text[-_REASON_LENGTH:] or f"The process ended with the status {process.returncode}."


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End the process, which removes its files at SIGTERM."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            process.kill()


def _not_built(reason: str) -> None:
    _log.warning("documentation not built", reason=reason, hint=_HINT)
