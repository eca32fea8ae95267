"""JSON Lines from a file, a folder or standard input, plain or gzip, in chunks and within limits."""

from __future__ import annotations

import gzip
import hashlib
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from ccp.errors import ConfigurationError

CHUNK_LINES: Final = 32
"""Few enough that a worker's result comes soon, enough that the cost of a message to it is small."""
CHUNK_BYTES: Final = 1_048_576
_SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".json")
_GZIP_MAGIC: Final = b"\x1f\x8b"
_DISCARD_BYTES: Final = 65_536  # Read at a time from a line that is too long.

# Limits on input that costs time and contains nothing. 60 million empty lines are a gzip file of 60 kB; reading them
# took 98 seconds.
_BLANK_LINES: Final = 1_000
_BLANK_LINES_PER_LINE: Final = 10
"""Lines without content that are allowed in total, and in addition for each line with content."""
_CONTENT_BYTES: Final = 64
"""A shorter line cannot contain a contract and counts as one without content: each causes a report line of twice its
length.
"""
_EXPANDED_BYTES: Final = 67_108_864
_EXPANSION: Final = 100
"""Bytes that a gzip file may expand to: the former in total, plus the latter times its compressed size. Contracts
compress to an eighth.
"""
_COMPRESSED_BYTES_PER_LINE: Final = 1_048_576
"""Compressed bytes without a line, in addition to the longest line: a file may contain many empty gzip members."""


class Line(NamedTuple):
    """A line of the input. data: None if it is longer than a body may be."""

    file: str
    number: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class InputOffset:
    """A place in the input, with a digest of everything before it.

    lines: over all files, including empty lines. position: bytes on disk, for a progress bar. digest: SHA-256,
    hexadecimal, over names and contents.
    """

    lines: int
    position: int
    digest: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive lines, without empty ones. end: the offset after them."""

    lines: tuple[Line, ...]
    end: InputOffset


@dataclass(frozen=True, slots=True)
class InputSource:
    """The input of an import. files: None for standard input. size: bytes of all files on disk, None if unknown."""

    name: str
    files: tuple[Path, ...] | None
    size: int | None

    @classmethod
    def of(cls, name: str, without: Path | None = None) -> InputSource:
        """The source that a command names.

        name: a file, a folder (its *.jsonl, *.jsonl.gz and *.json, sorted), or "-". without: a file to leave out of a
        folder. Raises ConfigurationError, also for a symbolic link out of the folder: a user who may write to the
        folder is not necessarily allowed to read the target.
        """
        if name == "-":
            return cls(name, None, None)
        path = Path(name)
        files: tuple[Path, ...] = (path,)
        if path.is_dir():
            left_out = without.resolve() if without else None
            files = tuple(
                found
                for found in sorted(path.iterdir())
                if found.name.lower().endswith(_SUFFIXES) and found.is_file() and found.resolve() != left_out
            )
            inside = path.resolve()
            outside = [file for file in files if file.is_symlink() and not file.resolve().is_relative_to(inside)]
            if outside:
                raise ConfigurationError(
                    f"{outside[0]} is a link to a file outside of {path}; links out of a folder are not followed."
                )
            if not files:
                raise ConfigurationError(f"There is no {', '.join('*' + suffix for suffix in _SUFFIXES)} in {path}.")
        elif not path.exists():
            raise ConfigurationError(f"There is no file or directory {path}.")
        regular = all(file.is_file() for file in files)
        return cls(name, files, sum(file.stat().st_size for file in files) if regular else None)

    def chunks(self, max_line_bytes: int) -> Iterator[Chunk]:
        """Read the whole input. The last chunk may be empty. Raises ConfigurationError."""
        chunker = _Chunker(max_line_bytes)
        if self.files is None:
            # Not sys.stdin: while a thread is blocked in that object, the interpreter aborts on exit.
            with open(sys.stdin.fileno(), "rb", closefd=False) as stream:
                yield from chunker.stream(stream, "-")
        for file in self.files or ():
            try:
                with file.open("rb") as stream:
                    yield from chunker.stream(stream, str(file), whole=file.name.lower().endswith(".json"))
            except OSError as exc:
                raise ConfigurationError(f"{file} cannot be read: {exc.strerror or exc}.") from exc
        yield chunker.last_chunk()


class _Chunker:
    """Splits files into chunks. Chunks, counts and the digest continue from file to file."""

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._digest = hashlib.sha256()
        self._count = 0
        self._position = 0
        self._lines: list[Line] = []
        self._bytes = 0
        self._blank = 0
        self._contents = 0

    def stream(self, raw: IO[bytes], name: str, whole: bool = False) -> Iterator[Chunk]:
        """Read one file. whole: the file is one body, whatever its number of lines. Raises ConfigurationError."""
        self._digest.update(f"{Path(name).name}\n".encode())
        began = self._position
        # A pipe cannot seek back, but a buffered reader can be peeked into.
        start = raw.peek(2)[:2] if hasattr(raw, "peek") else b""
        compressed = _CompressedFile(raw, self._max_line_bytes) if start == _GZIP_MAGIC else None
        content: Any = raw if compressed is None else gzip.GzipFile(fileobj=compressed)  # type: ignore[call-overload]
        number = 0
        try:
            while (
                data := self._read_body(content, compressed) if whole else self._read_line(content, compressed)
            ) != b"":
                number += 1
                self._count += 1
                length = self._max_line_bytes if data is None else len(data.strip())
                if length:
                    self._lines.append(Line(name, number, data))
                    self._bytes += len(data or b"")
                if length >= _CONTENT_BYTES:
                    self._contents += 1
                else:
                    self._blank += 1
                    if self._blank > _BLANK_LINES + _BLANK_LINES_PER_LINE * self._contents:
                        raise _ExcessiveInput("too many lines without content")
                if len(self._lines) >= CHUNK_LINES or self._bytes >= CHUNK_BYTES:
                    self._position = began + _tell(raw)
                    yield self._chunk()
        except (EOFError, zlib.error, gzip.BadGzipFile, _ExcessiveInput) as exc:
            raise ConfigurationError(f"{name} cannot be read after line {number}: {exc}.") from exc
        finally:
            if content is not raw:
                content.close()
        self._position = began + _tell(raw)

    def last_chunk(self) -> Chunk:
        """The remaining lines, possibly none, and the end of the input."""
        return self._chunk()

    def _chunk(self) -> Chunk:
        chunk = Chunk(tuple(self._lines), InputOffset(self._count, self._position, self._digest.hexdigest()))
        self._lines, self._bytes = [], 0
        return chunk

    def _read_line(self, content: IO[bytes], compressed: _CompressedFile | None) -> bytes | None:
        """The next line, b"" at the end, None for a line that is too long."""
        limit = self._max_line_bytes
        data = self._account(content.readline(limit + 2), compressed)
        if len(data.rstrip(b"\r\n")) <= limit and (data.endswith(b"\n") or len(data) < limit + 2):
            return data
        while data and not data.endswith(b"\n"):
            data = self._account(content.readline(_DISCARD_BYTES), compressed)
        return None

    def _read_body(self, content: IO[bytes], compressed: _CompressedFile | None) -> bytes | None:
        """The whole file as one body, b"" at the end, None for a body that is too long."""
        data = self._account(content.read(self._max_line_bytes + 1), compressed)
        if len(data) <= self._max_line_bytes:
            return data
        while self._account(content.read(_DISCARD_BYTES), compressed):
            pass
        return None

    def _account(self, data: bytes, compressed: _CompressedFile | None) -> bytes:
        """Add data to the digest and to the expanded size of its file."""
        self._digest.update(data)
        if compressed is not None:
            compressed.expanded_by(len(data))
        return data


class _ExcessiveInput(Exception):
    """Input that costs far more time than its content justifies."""


class _CompressedFile:
    """A gzip file on disk, for GzipFile to read from, with limits on its expansion. Raises _ExcessiveInput."""

    def __init__(self, raw: IO[bytes], max_line_bytes: int) -> None:
        self._raw = raw
        self._max_without_line = max_line_bytes + _COMPRESSED_BYTES_PER_LINE
        self._read = 0
        self._without_line = 0
        self._expanded = 0

    def read(self, size: int = -1) -> bytes:
        """Read compressed bytes."""
        data = self._raw.read(size)
        self._read += len(data)
        self._without_line += len(data)
        if self._without_line > self._max_without_line:
            raise _ExcessiveInput(f"{self._without_line:,} compressed bytes without content")
        return data

    def expanded_by(self, size: int) -> None:
        """Count decompressed bytes of a line."""
        self._without_line = 0
        self._expanded += size
        if self._expanded > _EXPANDED_BYTES + _EXPANSION * self._read:
            raise _ExcessiveInput(f"it expands to more than {_EXPANSION} times its size")


def _tell(raw: IO[bytes]) -> int:
    return raw.tell() if raw.seekable() else 0
