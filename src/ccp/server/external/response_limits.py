"""Limits on the framing of an HTTP/1.1 response: heads, header lines, interim responses, chunks, trailers.

A limit on body bytes does not limit work: 64 KiB can be 2,600 interim responses or 10,900 chunks of one byte, and the
parser processes all of them between two awaits. `ResponseFraming` follows the framing only as far as needed to split
the bytes into small portions, to estimate the cost of each, and to refuse what no real server sends:

    framing.begin()                              # before each request
    portion = framing.next_portion(received)     # how many of the received bytes the parser gets now; 0: wait for more

It makes no decision about the message. The parser (h11) reads the same bytes afterwards and is stricter.
Source: RFC 9112 clauses 2, 4, 6.3 and 7.1; RFC 9110 clause 15.2.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, NamedTuple

import httpcore

MAX_HEAD_BYTES: Final = 32_768  # Sum over all heads of an exchange; common servers send at most 8,192 for one.
MAX_HEADER_LINES: Final = 256
MAX_INTERIM_RESPONSES: Final = 8  # 100 Continue, 102 Processing, 103 Early Hints: one or two in practice.
MAX_CHUNK_LINE_BYTES: Final = 256  # The size, and extensions, which no known server sends.
MAX_TRAILER_BYTES: Final = 8_192
MAX_TRAILER_LINES: Final = 64
_FREE_PIECES: Final = 1_024  # Chunks, and reads, that may be of any size.
_MIN_PIECE_BYTES: Final = 256  # The minimum average size of further ones.
_CHUNKS_PER_PORTION: Final = 32
_RAW_PORTION: Final = 65_536

# Estimated cost in microseconds, measured with h11 0.16 and Python 3.11 on a slow core.
_HEAD_COST: Final = 120
_LINE_COST: Final = 6
_CHUNK_COST: Final = 30
_PORTION_COST: Final = 30

_HEAD_END: Final = re.compile(rb"\n\r?\n")
_TRAILER_END: Final = re.compile(rb"\A\r?\n|\n\r?\n")
_STATUS: Final = re.compile(rb"HTTP/[0-9]\.[0-9] ([0-9]{3})")
_CODING: Final = re.compile(rb"\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_LENGTH: Final = re.compile(rb"\ncontent-length[ \t]*:[ \t]*([0-9]{1,15})", re.IGNORECASE)
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,20})(?:;[^\n]*)?[ \t]*\r\n")


class ResponseLimitError(httpcore.RemoteProtocolError):
    """A response exceeds a limit. The text completes a sentence that begins with the name of the server."""


class Portion(NamedTuple):
    """length: bytes for the parser. cost: estimated microseconds of the parser's work."""

    length: int
    cost: int


class _Part(Enum):
    HEAD = "head"
    RAW = "body until the end of the connection"
    SIZED = "body of a known length"
    CHUNKED = "chunked body"
    TRAILER = "trailer"
    END = "end"


def portion_cost(length: int) -> int:
    """Estimated cost of body bytes in microseconds."""
    return _PORTION_COST + length // 256


class ResponseFraming:
    """Framing of the successive responses on a connection. Sans-IO."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start a new exchange: the next bytes are the response to the request that is being sent."""
        self._part = _Part.HEAD
        self._head_bytes = self._lines = self._interim = 0
        self._scanned = 0
        self._chunks = self._reads = self._bytes = 0
        self._left = 0

    @property
    def is_plain(self) -> bool:
        """Whether all further bytes are body."""
        return self._part is _Part.RAW

    def count_read(self, length: int) -> None:
        """Count received bytes. Raises ResponseLimitError for a stream of tiny pieces."""
        self._reads += 1
        self._bytes += length
        self._check_pieces(self._reads, "sends its answer in too many small pieces")

    def next_portion(self, received: bytearray) -> Portion:
        """The portion of the received bytes that the parser gets now; length 0 if more bytes are needed first.

        Raises ResponseLimitError.
        """
        match self._part:
            case _Part.HEAD:
                return self._head(received)
            case _Part.SIZED:
                return self._sized(received)
            case _Part.CHUNKED:
                return self._chunked(received)
            case _Part.TRAILER:
                return self._trailer(received)
            case _:
                length = min(len(received), _RAW_PORTION)
                return Portion(length, portion_cost(length))

    def _head(self, received: bytearray) -> Portion:
        end = _HEAD_END.search(received, max(0, self._scanned - 2), MAX_HEAD_BYTES + 1)
        length = end.end() if end else len(received)
        if self._head_bytes + length > MAX_HEAD_BYTES:
            raise ResponseLimitError("sends more header bytes than are accepted")
        if end is None:
            self._scanned = length
            return Portion(0, 0)
        head = bytes(received[:length])
        lines = head.count(b"\n")
        self._head_bytes, self._lines, self._scanned = self._head_bytes + length, self._lines + lines, 0
        if self._lines > MAX_HEADER_LINES:
            raise ResponseLimitError("sends more header lines than are accepted")
        status = _STATUS.match(head)
        if status is not None and status[1][:1] == b"1" and status[1] != b"101":
            self._interim += 1
            if self._interim > MAX_INTERIM_RESPONSES:
                raise ResponseLimitError("sends more interim answers than are accepted")
        else:
            self._part = self._body_after(head, b"" if status is None else status[1])
        return Portion(length, _HEAD_COST + lines * _LINE_COST)

    def _body_after(self, head: bytes, status: bytes) -> _Part:
        """The part that follows a head. Source: RFC 9112 clause 6.3."""
        if status in (b"204", b"304"):
            return _Part.END
        if _CODING.search(head):
            return _Part.CHUNKED
        length = _LENGTH.search(head)
        if length is None:
            return _Part.RAW
        self._left = int(length[1])
        return _Part.SIZED if self._left else _Part.END

    def _sized(self, received: bytearray) -> Portion:
        length = min(len(received), self._left, _RAW_PORTION)
        self._left -= length
        if not self._left:
            self._part = _Part.END
        return Portion(length, portion_cost(length))

    def _chunked(self, received: bytearray) -> Portion:
        offset = found = 0
        while offset < len(received) and found < _CHUNKS_PER_PORTION:
            if self._left:
                step = min(self._left, len(received) - offset)
                self._left -= step
                offset += step
                continue
            end = received.find(b"\n", offset, offset + MAX_CHUNK_LINE_BYTES)
            if end < 0:
                if len(received) - offset >= MAX_CHUNK_LINE_BYTES:
                    raise ResponseLimitError("sends a longer chunk line than is accepted")
                break
            line = _CHUNK_LINE.fullmatch(received, offset, end + 1)
            if line is None:
                raise ResponseLimitError("sends a chunk that cannot be read")
            found += 1
            self._chunks += 1
            self._check_pieces(self._chunks, "sends its answer in too many small chunks")
            offset = end + 1
            size = int(line[1], 16)
            if size == 0:
                self._part = _Part.TRAILER
                break
            self._left = size + 2
        return Portion(offset, portion_cost(offset) + found * _CHUNK_COST)

    def _trailer(self, received: bytearray) -> Portion:
        end = _TRAILER_END.search(received, 0, MAX_TRAILER_BYTES + 1)
        length = end.end() if end else len(received)
        lines = received.count(b"\n", 0, min(length, MAX_TRAILER_BYTES))
        if length > MAX_TRAILER_BYTES or lines > MAX_TRAILER_LINES:
            raise ResponseLimitError("sends more trailers than are accepted")
        if end is None:
            return Portion(0, 0)
        self._part = _Part.END
        return Portion(length, _PORTION_COST + lines * _LINE_COST)

    def _check_pieces(self, pieces: int, problem: str) -> None:
        if pieces > _FREE_PIECES + self._bytes // _MIN_PIECE_BYTES:
            raise ResponseLimitError(problem)
