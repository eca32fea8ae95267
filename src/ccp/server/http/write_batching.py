"""What connections write, once a turn of the event loop.

A write wakes whoever reads, here or on another machine, and that costs more than to make an answer's head. So the head
and the body of an answer go out as one, and the answers of a turn one behind the other when all of them are made.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

_MOST: Final = 65_536  # Octets that one connection gathers; uvicorn's own limit for what a client has not taken.


class WriteBatcher:
    """The connections of a worker that have something to write in this turn."""

    def __init__(self) -> None:
        self._waiting: list[BufferedTransport] = []

    def soon(self, outgoing: BufferedTransport) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(outgoing)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for outgoing in waiting:
            # One that is gone must not take the answers of others with it; its own protocol is told otherwise.
            with contextlib.suppress(OSError, RuntimeError):
                outgoing.flush()


class BufferedTransport:
    """A connection's transport, whose writes wait for the end of the turn. Its end waits for them."""

    def __init__(self, transport: asyncio.Transport, writing: WriteBatcher) -> None:
        self._transport: Final = transport
        self._writing: Final = writing
        self._waiting: Final[list[bytes]] = []
        self._octets = 0
        self.is_closing: Final = transport.is_closing

    def write(self, octets: bytes) -> None:
        if not self._waiting:
            self._writing.soon(self)
        self._waiting.append(octets)
        self._octets += len(octets)
        if self._octets > _MOST:
            self.flush()  # So that whoever writes on and on meets the transport's own limit.

    def write_now(self, data: bytes) -> None:
        """Write what is complete by itself, behind what waits."""
        if self._waiting:
            self.write(data)
        else:
            self._transport.write(data)

    def flush(self) -> None:
        if self._waiting:
            octets = b"".join(self._waiting)
            self._waiting.clear()
            self._octets = 0
            if not self.is_closing():  # Else the client has gone.
                self._transport.write(octets)

    def unsent(self) -> int:
        """How many bytes the client has not been sent yet, or has not taken."""
        return self._octets + self._transport.get_write_buffer_size()

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def write_eof(self) -> None:
        self.flush()
        self._transport.write_eof()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
