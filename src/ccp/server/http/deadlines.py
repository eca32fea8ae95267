"""Deadlines of a connection: handshake, head, body, response and idle time.

uvicorn waits as long as a client likes. `TimedConnection` adds deadlines. One background task checks all connections of
a worker (`ConnectionRegistry.reap`), so a deadline costs a request a few assignments and no timer.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from abc import abstractmethod
from typing import Any, Final

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ccp.server.http import tls
from ccp.server.http.connection_limits import ConnectionRegistry, shortened
from ccp.server.http.request_cycle import RequestCycle
from ccp.server.http.write_batching import BufferedTransport

IDLE_TIMEOUT: Final = 75.0
"""Seconds. Longer than the timeout of most proxies (60 is common), so that a proxy closes idle connections first."""
SHORTEST_TIMEOUT: Final = 5.0
"""Timeout of a full worker, in seconds: enough for an honest client."""
SHORTEST_HANDSHAKE: Final = 2.0
"""The same for a TLS handshake."""
NEVER: Final = math.inf

# The part of a request that the parser is reading. Plain integers, because they are compared for every header.
BETWEEN_REQUESTS: Final = 0
HEAD: Final = 1
BODY: Final = 2


class TimedConnection(HttpToolsProtocol):
    """A connection with deadlines. Times are of the monotonic clock, in seconds."""

    cycle: RequestCycle
    _buffered: BufferedTransport
    """The same object as `transport`."""

    def __init__(
        self,
        config: Config,
        server_state: Any,
        connections: ConnectionRegistry,
        _loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        super().__init__(config, server_state, {}, _loop)
        self._connections = connections
        self._stage = BETWEEN_REQUESTS
        self._draining = False
        self._started_at = self._deadline = NEVER
        self._write_deadline = NEVER
        self._closing = False
        self._free_since = 0.0
        self._in_handshake: socket.socket | None = None
        self._refusal: tuple[int, str] | None = None

    @abstractmethod
    def _fail(self, status: int, message: str) -> None:
        """Answer what is being received with an error, and read no further."""

    # The transport's flow control.

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_deadline = time.monotonic() + self._connections.read_timeout
        # A client that does not read its responses is not read from either: refusals would accumulate in memory.
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_deadline = NEVER
        self.flow.resume_reading()

    # Called by the registry.

    def check_deadlines(self, now: float, pressure: float) -> None:
        """Close the connection, or reject its request, if a deadline has passed. pressure: shortens the timeouts."""
        if (
            pressure == 0.0
            and now < self._deadline
            and now < self._write_deadline
            and self._in_handshake is None
            and not self.transport.is_closing()
        ):
            return  # Nearly all connections, of which there may be ten thousand.
        if self._in_handshake is not None:
            pressure = 1.0 if self._refusal else pressure
            if now > self._started_at + shortened(tls.HANDSHAKE_TIMEOUT, SHORTEST_HANDSHAKE, pressure):
                self.abort()
        elif self.transport.is_closing():
            if not self._closing:
                self._closing, self._deadline = True, now + self._connections.read_timeout
            elif now > self._deadline:
                self.transport.abort()  # The client does not read the rest of the response.
        elif now > self._write_deadline:
            self.transport.abort()
        elif self._draining:
            if now > self._deadline:
                self.transport.close()
        elif self._deadline is not NEVER:
            between = self._stage is BETWEEN_REQUESTS and self.cycle is not None
            timeout = IDLE_TIMEOUT if between else self._connections.read_timeout
            allowed = shortened(timeout, SHORTEST_TIMEOUT, pressure)
            if now > self._deadline - timeout + allowed:
                self._on_overdue(now, allowed)

    def _on_overdue(self, now: float, allowed: float) -> None:
        if self._stage is BETWEEN_REQUESTS:
            self.transport.close()
        elif self.flow.read_paused:
            self._deadline = now + 1.0  # The pool does not read, so the client is not late.
        else:
            part = "head" if self._stage is HEAD else "body"
            self._fail(408, f"The {part} of the request took longer than {allowed:.0f} seconds.")

    def idle_since(self) -> float | None:
        """Since when no request is in progress; None if one is."""
        if self._in_handshake is not None:
            return self._started_at
        return self._free_since if self._answered and not self._buffered.unsent() else None

    def stalled_since(self) -> float | None:
        """Since when a request in progress waits for its client; None if it does not."""
        if self._in_handshake is not None:
            return None
        if self._answered:
            return self._free_since if self._buffered.unsent() else None
        if self._write_deadline is not NEVER:
            return self._write_deadline - self._connections.read_timeout
        return self._started_at if self._awaits_body else None

    def give_way(self) -> bool:
        """Close to make room for another connection. Returns whether the client still has to read a response."""
        if self._in_handshake is None and not self._answered and self._awaits_body:
            self._fail(503, "The pool has too many connections just now, and the rest of this request has not come.")
            return True
        self.abort()
        return False

    def abort(self) -> None:
        """Close at once, without sending what is buffered."""
        if self._in_handshake is not None:
            tls.shut_down(self._in_handshake)
        else:
            self.transport.abort()

    @property
    def _answered(self) -> bool:
        cycle: RequestCycle | None = self.cycle
        return cycle is None or (cycle.response_complete and not self.pipeline)

    @property
    def _awaits_body(self) -> bool:
        return self.cycle.more_body and not self.flow.read_paused and not self._draining
