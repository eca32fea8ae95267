"""The files of the documentation site: read from a directory, or shared by the workers in an anonymous file.

Each page runs scripts of its own, on the origin of the token endpoint. So every file has a Content-Security-Policy that
permits no script but the site's files and, by their digests, the inline scripts of this page, and no connection to
another origin.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import mimetypes
import os
import re
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from ccp.errors import ConfigurationError
from ccp.errors.codes import ErrorCode

PREFIX: Final = "/docs"
MAX_SITE: Final = 64 * 2**20
"""Bytes of all files of a site. A built site has 14 MB, and 3 MB compressed."""
NOT_FOUND: Final = "404.html"
"""The page for an unknown path. Its addresses are absolute, and made by the generator for a site at the root."""

_ABSOLUTE: Final = re.compile(rb"((?:href|src)=\"|\"base\": ?\")/(?!/)")
_INLINE_SCRIPT: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_POLICY: Final = (
    "default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; worker-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'"
)


def code_link(code: ErrorCode) -> bytes:
    """Return the value of a Link header (RFC 8288) that leads to the page of a refusal's code."""
    return f'<{PREFIX}/reference/errors/{code}.html>; rel="help"'.encode()


class SiteFile(NamedTuple):
    """A file of the site. compressed: gzip. etag: weak, the same for gzip and identity. policy: of its contents."""

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
    if path.name == NOT_FOUND:
        content = _ABSOLUTE.sub(rb"\1" + PREFIX.encode() + b"/", content)
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if media_type.startswith("text/"):
        media_type += "; charset=utf-8"
    etag = f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'
    scripts = " ".join(("'self'", *_digests(content))) if path.suffix == ".html" else "'none'"
    return SiteFile(gzip.compress(content, 3, mtime=0), media_type, etag, _POLICY.format(scripts=scripts))


def _digests(page: bytes) -> Iterator[str]:
    """The sources of the inline scripts of a page, in the words of a Content-Security-Policy, without repetitions."""
    for script in dict.fromkeys(_INLINE_SCRIPT.findall(page)):
        yield f"'sha256-{b64encode(hashlib.sha256(script).digest()).decode()}'"


class SiteState(StrEnum):
    """State of a site that is built in the background."""

    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"


_STATES: Final = {b"S": SiteState.READY, b"F": SiteState.FAILED}
"""By the first byte of a shared file. It is written last: an empty file or a zero byte means that nothing is there."""


class SharedSite:
    """A site in an anonymous file: in memory on Linux, without a name, and gone with the processes that have it open.

    The workers inherit its descriptor. One of them starts the process that builds the site, which inherits it too and
    writes the site. Layout: a byte with the state, a JSON line that lists the files, and their contents.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor: Final = descriptor

    @classmethod
    def create(cls) -> SharedSite:
        """Create the file. Raises OSError."""
        if sys.platform == "linux":
            return cls(os.memfd_create("ccp-documentation"))
        with tempfile.TemporaryFile(prefix="ccp-documentation-") as file:
            return cls(os.dup(file.fileno()))

    def state(self) -> SiteState:
        """Read the state; a system call that does not block."""
        return _STATES.get(os.pread(self.descriptor, 1, 0), SiteState.BUILDING)

    def claim(self) -> bool:
        """Whether this process is the one that builds. The claim ends with the process, so that another takes over."""
        return self._lock(0, wait=False)

    def write(self, files: Mapping[str, SiteFile]) -> None:
        """Write the site and set the state, unless another process did. Raises OSError."""
        listed = [(name, len(file.compressed), *file[1:]) for name, file in files.items()]
        data = b"".join((json.dumps(listed).encode(), b"\n", *(file.compressed for file in files.values())))
        self._lock(1, wait=True)  # The process whose claim has ended may be building still.
        if self.state() is SiteState.BUILDING:
            self._set(data, offset=1)
            self._set(b"S", offset=0)

    def fail(self) -> None:
        """Note that the site cannot be built."""
        self._set(b"F", offset=0)

    def read(self) -> dict[str, SiteFile]:
        """Read the files of a site that is ready. Reads some megabytes."""
        data = memoryview(os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0))
        end = bytes(data[: 2**20]).index(b"\n")
        files, offset = {}, end + 1
        for name, length, *more in json.loads(bytes(data[1:end])):
            files[name] = SiteFile(bytes(data[offset : offset + length]), *more)
            offset += length
        return files

    def _set(self, data: bytes, *, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self.descriptor, view, offset)
            view, offset = view[written:], offset + written

    def _lock(self, place: int, *, wait: bool) -> bool:
        """Lock one byte for this process; a child does not inherit the lock (POSIX record locks)."""
        import fcntl

        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
        except (BlockingIOError, PermissionError):
            return False
        return True
