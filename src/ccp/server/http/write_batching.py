"""Write batching: the responses of one event loop iteration are written at its end.

Each socket write costs a system call and wakes the reader, which costs more than making the head of a response. So head
and body of a response are one write, and all responses of an iteration are written in sequence at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

_MAX_BUFFERED: Final = 65_536  # Bytes for each connection: uvicorn's limit for data that the client has not read.


class WriteBatcher:
    """The connections of a worker with buffered data."""

    def __init__(self) -> None:
        self._waiting: list[BufferedTransport] = []

    def schedule(self, transport: BufferedTransport) -> None:
        """Flush a transport at the end of this iteration of the event loop."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(transport)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for transport in waiting:
            # A closed connection must not prevent the others from being flushed; its own protocol learns of the loss.
            with contextlib.suppress(OSError, RuntimeError):
                transport.flush()


class BufferedTransport:
    """A transport that buffers writes until the end of the event loop iteration. Closing flushes first."""

    def __init__(self, transport: asyncio.Transport, batcher: WriteBatcher) -> None:
        self._transport: Final = transport
        self._batcher: Final = batcher
        self._waiting: Final[list[bytes]] = []
        self._size = 0
        self.is_closing: Final = transport.is_closing

    def write(self, data: bytes) -> None:
        """Buffer data."""
        if not self._waiting:
            self._batcher.schedule(self)
        self._waiting.append(data)
        self._size += len(data)
        if self._size > _MAX_BUFFERED:
            self.flush()  # So that the transport's own flow control applies to large writes.

    def write_now(self, data: bytes) -> None:
        """Write a complete response, after the buffered data."""
        if self._waiting:
            self.write(data)
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Write the buffered data."""
        if self._waiting:
            data = b"".join(self._waiting)
            self._waiting.clear()
            self._size = 0
            if not self.is_closing():  # Otherwise the client has disconnected.
                self._transport.write(data)

    def unsent(self) -> int:
        """Return the number of bytes that are buffered here, or that the client has not read."""
        return self._size + self._transport.get_write_buffer_size()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._transport.close()

    def write_eof(self) -> None:
        """Flush and close the sending direction."""
        self.flush()
        self._transport.write_eof()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
