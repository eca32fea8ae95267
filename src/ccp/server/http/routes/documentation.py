"""GET /docs/…: the documentation site that `ccp docs build` wrote, if the settings name its directory.

The site is read once, at the start, and kept compressed: no request opens a file. Its pages run scripts of their own,
on the origin of the token endpoint. So every page has a Content-Security-Policy that permits no script but the site's
files and, by their digests, the inline scripts of this page, and no connection to another origin.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ccp.errors import ConfigurationError, NotFound
from ccp.server.http.middleware.tracing import trace_of

PREFIX: Final = "/docs"
MAX_SITE: Final = 64 * 2**20
"""Bytes of all files of a site. A built site has 12 MB, and 2 MB compressed."""

_NOT_FOUND: Final = "404.html"
"""The page for an unknown path. Its addresses are absolute, and made by the generator for a site at the root."""
_ABSOLUTE: Final = re.compile(rb"((?:href|src)=\"|\"base\": ?\")/(?!/)")

_OPERATION: Final = "documentation"
_INLINE_SCRIPT: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_POLICY: Final = (
    "default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; worker-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'"
)
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "public, no-cache",  # Ask each time whether it has changed: the ETag answers.
    "Vary": "Accept-Encoding",
}


class SiteFile(NamedTuple):
    """A file of the site. compressed: gzip. policy: its Content-Security-Policy."""

    compressed: bytes
    media_type: str
    etag: str
    policy: str


def read_site(directory: Path) -> dict[str, SiteFile]:
    """Read a site: its files by their paths, such as reference/api/opnc.html. Raises ConfigurationError."""
    files: dict[str, SiteFile] = {}
    room = MAX_SITE
    try:
        for path in sorted(each for each in directory.rglob("*") if each.is_file()):
            room -= path.stat().st_size
            if room < 0:
                raise ConfigurationError(f"documentation_directory: {directory} has more than {MAX_SITE} bytes.")
            files[path.relative_to(directory).as_posix()] = _site_file(path)
    except OSError as exc:
        raise ConfigurationError(f"documentation_directory: {directory} cannot be read: {exc.strerror}.") from exc
    if "index.html" not in files:
        raise ConfigurationError(f"documentation_directory: {directory} has no index.html; run `ccp docs build` first.")
    return files


def _site_file(path: Path) -> SiteFile:
    content = path.read_bytes()
    if path.name == _NOT_FOUND:
        content = _ABSOLUTE.sub(rb"\1" + PREFIX.encode() + b"/", content)
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if media_type.startswith("text/"):
        media_type += "; charset=utf-8"
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    scripts = " ".join(("'self'", *_digests(content))) if path.suffix == ".html" else "'none'"
    return SiteFile(gzip.compress(content, 3, mtime=0), media_type, etag, _POLICY.format(scripts=scripts))


def _digests(page: bytes) -> Iterator[str]:
    """The sources of the inline scripts of a page, in the words of a Content-Security-Policy, without repetitions."""
    for script in dict.fromkeys(_INLINE_SCRIPT.findall(page)):
        yield f"'sha256-{b64encode(hashlib.sha256(script).digest()).decode()}'"


def routes(directory: Path | None) -> list[Route]:
    """Return the routes, or none without a site. Raises ConfigurationError."""
    if directory is None:
        return []
    files: Mapping[str, SiteFile] = read_site(directory)

    async def show(request: Request) -> Response:
        trace_of(request.scope).operation = _OPERATION
        path = request.path_params["path"]
        file = files.get(f"{path}index.html" if not path or path.endswith("/") else path)
        headers, status = dict(_HEADERS), 200
        if file is None:
            file = files.get(_NOT_FOUND)
            if file is None:
                raise NotFound("There is no page of the documentation at this address.")
            status = 404
        headers |= {"ETag": file.etag, "Content-Security-Policy": file.policy}
        if status == 200 and request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            return Response(file.compressed, status, headers, file.media_type)
        return Response(gzip.decompress(file.compressed), status, headers, file.media_type)

    async def to_front(request: Request) -> Response:
        trace_of(request.scope).operation = _OPERATION
        return RedirectResponse(f"{PREFIX}/", 308)

    return [Route(PREFIX, to_front), Route(f"{PREFIX}/{{path:path}}", show)]
