"""Lines of JSON from a file, a folder or standard input, plain or compressed, in chunks and within limits."""

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
"""So few that a worker's answer is soon there, so many that handing them over costs little."""
CHUNK_OCTETS: Final = 1_048_576
_SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".json")
_GZIP: Final = b"\x1f\x8b"
_DISCARDED: Final = 65_536  # Octets at a time of a line that is too long anyway.

# Input that costs time and holds nothing. 60 million empty lines are a gzip file of 60 kB, and took 98 seconds.
_BLANK_LINES: Final = 1_000
_BLANK_LINES_PER_LINE: Final = 10
"""So many lines without content may come, and so many more for each line with content."""
_CONTENT_BYTES: Final = 64
"""A shorter line holds no contract, and counts as one without content: each is a refusal of twice its length."""
_EXPANDED_BYTES: Final = 67_108_864
_EXPANSION: Final = 100
"""So many bytes may a gzip file expand to, and so many times its compressed size. Contracts shrink to an eighth."""
_COMPRESSED_BYTES_PER_LINE: Final = 1_048_576
"""Compressed bytes without a line, beside what the longest line needs: empty gzip members can follow each other."""


class Line(NamedTuple):
    """octets: None where it is longer than a body may be."""

    file: str
    number: int
    octets: bytes | None


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the input: everything before it has this digest.

    lines: counted over all files, empty ones too. position: octets as they lie on disk, for a progress bar.
    digest: SHA-256, hexadecimal, over names and contents.
    """

    lines: int
    position: int
    digest: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """lines: none of them empty. after: the place behind them."""

    lines: tuple[Line, ...]
    after: Mark


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be read. files: None for standard input. octets: of all files on disk, None where unknown."""

    name: str
    files: tuple[Path, ...] | None
    octets: int | None

    @classmethod
    def of(cls, name: str, without: Path | None = None) -> Source:
        """name: a file, a folder (its *.jsonl, *.jsonl.gz and *.json in order), or "-". without: no part of a folder.

        Raises ConfigurationError, for a link that leads out of the folder too: who may write to a drop folder need not
        be allowed to read what it points to.
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
                raise ConfigurationError(f"There is no {', '.join('*' + each for each in _SUFFIXES)} in {path}.")
        elif not path.exists():
            raise ConfigurationError(f"There is no file or directory {path}.")
        regular = all(file.is_file() for file in files)
        return cls(name, files, sum(file.stat().st_size for file in files) if regular else None)

    def chunks(self, longest: int) -> Iterator[Chunk]:
        """Everything there is. longest: octets that a line may have. Raises ConfigurationError when reading fails."""
        reading = _Reading(longest)
        if self.files is None:
            # Not sys.stdin: the interpreter cannot end while a thread waits in that object, and aborts instead.
            with open(sys.stdin.fileno(), "rb", closefd=False) as stream:
                yield from reading.stream(stream, "-")
        for file in self.files or ():
            try:
                with file.open("rb") as stream:
                    yield from reading.stream(stream, str(file), whole=file.name.lower().endswith(".json"))
            except OSError as exc:
                raise ConfigurationError(f"{file} cannot be read: {exc.strerror or exc}.") from exc
        yield from reading.rest()


class _Reading:
    """What goes on from file to file."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._digest = hashlib.sha256()
        self._count = 0
        self._position = 0
        self._lines: list[Line] = []
        self._octets = 0
        self._blank = 0
        self._contents = 0

    def stream(self, raw: IO[bytes], name: str, whole: bool = False) -> Iterator[Chunk]:
        """whole: the file is one body, however many lines it has."""
        self._digest.update(f"{Path(name).name}\n".encode())
        began = self._position
        # A pipe has no place to go back to; a buffered reader of ours can be looked into all the same.
        start = raw.peek(2)[:2] if hasattr(raw, "peek") else b""
        packed = _Packed(raw, self._longest) if start == _GZIP else None
        content: Any = raw if packed is None else gzip.GzipFile(fileobj=packed)  # type: ignore[call-overload]
        number = 0
        try:
            while (octets := self._body(content, packed) if whole else self._line(content, packed)) != b"":
                number += 1
                self._count += 1
                length = self._longest if octets is None else len(octets.strip())
                if length:
                    self._lines.append(Line(name, number, octets))
                    self._octets += len(octets or b"")
                if length >= _CONTENT_BYTES:
                    self._contents += 1
                else:
                    self._blank += 1
                    if self._blank > _BLANK_LINES + _BLANK_LINES_PER_LINE * self._contents:
                        raise _Excessive("too many lines without content")
                if len(self._lines) >= CHUNK_LINES or self._octets >= CHUNK_OCTETS:
                    self._position = began + _told(raw)
                    yield self._chunk()
        except (EOFError, zlib.error, gzip.BadGzipFile, _Excessive) as exc:
            raise ConfigurationError(f"{name} cannot be read behind line {number}: {exc}.") from exc
        finally:
            if content is not raw:
                content.close()
        self._position = began + _told(raw)

    def rest(self) -> Iterator[Chunk]:
        """What is left, and in any case the end."""
        yield self._chunk()

    def _chunk(self) -> Chunk:
        chunk = Chunk(tuple(self._lines), Mark(self._count, self._position, self._digest.hexdigest()))
        self._lines, self._octets = [], 0
        return chunk

    def _line(self, content: IO[bytes], packed: _Packed | None) -> bytes | None:
        """The next line, b"" at the end, None for one that is too long."""
        octets = self._took(content.readline(self._longest + 2), packed)
        if len(octets.rstrip(b"\r\n")) <= self._longest and (octets.endswith(b"\n") or len(octets) < self._longest + 2):
            return octets
        while octets and not octets.endswith(b"\n"):
            octets = self._took(content.readline(_DISCARDED), packed)
        return None

    def _body(self, content: IO[bytes], packed: _Packed | None) -> bytes | None:
        octets = self._took(content.read(self._longest + 1), packed)
        if len(octets) <= self._longest:
            return octets
        while self._took(content.read(_DISCARDED), packed):
            pass
        return None

    def _took(self, octets: bytes, packed: _Packed | None) -> bytes:
        self._digest.update(octets)
        if packed is not None:
            packed.expanded_by(len(octets))
        return octets


class _Excessive(Exception):
    """Input that costs far more than what it holds."""


class _Packed:
    """A gzip file as it lies on disk, for GzipFile to read from. Raises _Excessive."""

    def __init__(self, raw: IO[bytes], longest: int) -> None:
        self._raw = raw
        self._most = longest + _COMPRESSED_BYTES_PER_LINE
        self._read = 0
        self._since = 0
        self._expanded = 0

    def read(self, size: int = -1) -> bytes:
        octets = self._raw.read(size)
        self._read += len(octets)
        self._since += len(octets)
        if self._since > self._most:
            raise _Excessive(f"{self._since:,} compressed bytes without content")
        return octets

    def expanded_by(self, size: int) -> None:
        self._since = 0
        self._expanded += size
        if self._expanded > _EXPANDED_BYTES + _EXPANSION * self._read:
            raise _Excessive(f"it expands to more than {_EXPANSION} times its size")


def _told(raw: IO[bytes]) -> int:
    return raw.tell() if raw.seekable() else 0
