"""GET /docs/…: the documentation site, prepared in a directory or built by the pool itself.

A site is kept in memory and compressed: no request opens a file.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping
from typing import Final, Protocol

import structlog
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from ccp.errors import ConfigurationError, NotFound
from ccp.errors.codes import ErrorCode
from ccp.server.http import documentation_build
from ccp.server.http.documentation_site import NOT_FOUND, PREFIX, SharedSite, SiteFile, SiteState, read_site
from ccp.server.http.middleware.tracing import trace_of
from ccp.server.runtime.background import BackgroundTasks
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.server.settings import Settings

_log: Final = structlog.get_logger("ccp.server.http.documentation")
_OPERATION: Final = "documentation"
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "public, no-cache",  # Ask each time whether it has changed: the ETag answers.
    "Vary": "Accept-Encoding",
}
_SMALL: Final = 16 * 2**10
"""Compressed bytes that are decompressed in the event loop: less than a millisecond. Larger files take a thread."""
_RETRY_AFTER: Final = 3  # Seconds.
_WAITING: Final = (
    "The documentation is being built",
    "This takes some ten seconds after the start of the pool. The page then opens by itself.",
)
_FAILED: Final = (
    "The documentation could not be built",
    "The log of the pool has the reason and what to do: event <code>documentation not built</code>.",
)
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>body {{ font: 1rem/1.6 system-ui, sans-serif; max-width: 36rem; margin: 20vh auto 0; padding: 0 1.5rem }}</style>
</head>
<body><main><h1>{title}</h1><p role="status">{text}</p></main></body>
</html>
"""
_PAGE_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"


class Site(Protocol):
    """Where the files of the site come from."""

    def open(self, background: BackgroundTasks) -> None:
        """Start what prepares the files, beside the requests."""

    async def files(self) -> Mapping[str, SiteFile] | SiteState:
        """Return the files by their paths, or the state of a site that is not there."""


class PreparedSite:
    """A site that `ccp docs build` wrote, read at the start."""

    def __init__(self, files: Mapping[str, SiteFile]) -> None:
        self._files: Final = files

    def open(self, background: BackgroundTasks) -> None:
        pass

    async def files(self) -> Mapping[str, SiteFile]:
        return self._files


class BuiltSite:
    """A site that is built while the pool serves. A worker reads it once, at the first request after the build."""

    def __init__(self, shared: SharedSite) -> None:
        self._shared: Final = shared
        self._files: Mapping[str, SiteFile] = {}
        self._reading: Final = asyncio.Lock()
        self._threads: Final = BlockingCalls("documentation", max_threads=1, timeout=10)

    def open(self, background: BackgroundTasks) -> None:
        background.spawn("documentation", documentation_build.build(self._shared))

    async def files(self) -> Mapping[str, SiteFile] | SiteState:
        if not self._files:
            if (state := self._shared.state()) is not SiteState.READY:
                return state
            async with self._reading:
                self._files = self._files or await self._threads.run(self._shared.read)
        return self._files


def site_of(config: Settings, *, may_build: bool) -> Site | None:
    """Return the site to serve; None for none, and for a directory that cannot be read, which is logged.

    may_build: this is a worker of `ccp serve`. A pool inside another program serves a prepared site only.
    """
    if not config.documentation:
        return None
    if config.documentation_directory is not None:
        try:
            return PreparedSite(read_site(config.documentation_directory))
        except ConfigurationError as exc:  # It may be written anew just now. Vehicles do not need it.
            _log.error("documentation not served", reason=str(exc))
            return None
    shared = documentation_build.prepare(config) if may_build else None
    return None if shared is None else BuiltSite(shared)


def routes(site: Site | None) -> list[Route]:
    """Return the routes, or none without a site."""
    if site is None:
        return []
    threads = BlockingCalls("documentation decompression", max_threads=1, timeout=10)

    async def show(request: Request) -> Response:
        trace_of(request.scope).operation = _OPERATION
        files = await site.files()
        if isinstance(files, SiteState):
            trace_of(request.scope).code = ErrorCode.TEMPORARILY_UNAVAILABLE
            return _not_there(files)
        path = request.path_params["path"]
        file = files.get(f"{path}index.html" if not path or path.endswith("/") else path)
        headers, status = dict(_HEADERS), 200
        if file is None:
            file = files.get(NOT_FOUND)
            if file is None:
                raise NotFound("There is no page of the documentation at this address.")
            status = 404
        headers |= {"ETag": file.etag, "Content-Security-Policy": file.policy}
        if status == 200 and file.etag.removeprefix("W/") in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            return Response(file.compressed, status, headers, file.media_type)
        small = len(file.compressed) <= _SMALL
        content = gzip.decompress(file.compressed) if small else await threads.run(gzip.decompress, file.compressed)
        return Response(content, status, headers, file.media_type)

    async def to_front(request: Request) -> Response:
        trace_of(request.scope).operation = _OPERATION
        return RedirectResponse(f"{PREFIX}/", 308)

    return [Route(PREFIX, to_front), Route(f"{PREFIX}/{{path:path}}", show)]


def _not_there(state: SiteState) -> Response:
    """The page instead of every page while the site is built, which loads itself again, or if it cannot be built."""
    building = state is SiteState.BUILDING
    title, text = _WAITING if building else _FAILED
    headers = {"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-store"}
    if building:
        headers |= {"Refresh": str(_RETRY_AFTER), "Retry-After": str(_RETRY_AFTER)}
    return HTMLResponse(_PAGE.format(title=title, text=text), 503, headers)
