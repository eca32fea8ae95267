"""Limits on the connections of one worker: in total and for each address, and which connections to close.

- A connection counts from accept, before the TLS handshake.
- A full worker closes the connection that has been idle longest, of the address with the most idle connections, and
  accepts the new one. So a client that opens many connections loses its own. A connection from a trusted proxy counts
  as an address of its own, because a proxy has many clients.
- A connection is idle if no request is in progress. If none is idle, the worker closes connections whose client has for
  more than a second not sent the rest of its body or not read its response.
- The fuller the worker, the shorter the timeouts (`pressure`).
- A refused client gets a response. At most `MAX_REFUSED` refused connections are open; the newest replaces the oldest.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Final, Protocol

import structlog

from ccp.server.access.client_address import TrustedProxies
from ccp.server.http.admission import Admission
from ccp.server.http.overload import LoadShedder
from ccp.server.http.write_batching import WriteBatcher
from ccp.server.metrics import Metrics
from ccp.server.runtime.background import PeriodicTask
from ccp.server.settings import Settings

_log = structlog.get_logger("ccp.request")

MAX_REFUSED: Final = 64
"""Refused connections of one worker that may be open at a time, in addition to `max_connections`."""

_FORWARDED: Final = 256
_CHECK_INTERVAL: Final = 0.5
_STALLED_AFTER: Final = 1.0
_KEPT_UNDER_OVERLOAD: Final = 2.0
# Candidates for closing are selected in batches, because the selection visits every connection.
_CANDIDATES: Final = 32
_CANDIDATES_VALID: Final = 0.1

_FULL: Final = "The pool has too many connections just now."
_TOO_MANY_OF_ADDRESS: Final = "There are too many connections from this address."


class LimitedConnection(Protocol):
    """What the registry needs of a connection. Times are of the monotonic clock, in seconds."""

    counted: bytes | None
    """The address that it counts for; None behind a trusted proxy."""

    def check_deadlines(self, now: float, pressure: float) -> None:
        """Close the connection, or reject its request, if a deadline has passed."""

    def idle_since(self) -> float | None:
        """Since when no request is in progress; None if one is."""

    def stalled_since(self) -> float | None:
        """Since when a request in progress waits for its client; None if it does not."""

    def give_way(self) -> bool:
        """Close to make room for another connection. Returns whether the client still has to read a response."""

    def abort(self) -> None:
        """Close at once."""


def shortened(timeout: float, shortest: float, pressure: float) -> float:
    """Return a timeout under pressure: unchanged at 0, the shortest at 1."""
    return timeout - max(0.0, timeout - shortest) * pressure


class ConnectionRegistry:
    """The connections of one worker, with its write batcher, admission control and load shedder."""

    def __init__(self, config: Settings, proxies: TrustedProxies, metrics: Metrics | None = None) -> None:
        self.max_body = config.max_body
        self.read_timeout = float(config.read_timeout)
        self._max_connections = config.max_connections
        self._max_per_address = config.max_connections_per_address
        self._proxies = proxies
        self.metrics = metrics or Metrics()
        self._open: set[LimitedConnection] = set()
        self._by_address: Counter[bytes] = Counter()
        self._refused: dict[LimitedConnection, None] = {}  # In the order of refusal.
        self._candidates: deque[tuple[LimitedConnection, float]] = deque()
        self._candidates_until = 0.0
        self._refusals: Counter[str] = Counter()
        self._closed_idle = 0
        self.write_batcher = WriteBatcher()
        self.admission = Admission()
        self.load_shedder = LoadShedder(self.admission, self.metrics)

    @property
    def pressure(self) -> float:
        """0 while at least half of the connections are free, 1 when none is."""
        return min(1.0, max(0.0, 2 * len(self._open) / self._max_connections - 1))

    def counted_address(self, address: str | None, headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
        """Return what the client of a request counts as: the address that a trusted proxy reports, else the peer's."""
        lines = [value for name, value in headers if name == b"x-forwarded-for"]
        return self._proxies.resolve(address, b",".join(lines)[-_FORWARDED:].decode("latin-1")).rate_limit_key

    def register(self, connection: LimitedConnection, address: str | None) -> tuple[int, str] | None:
        """Count a connection. Returns None, or the status and the message with which it is refused."""
        connection.counted = counted = self._proxies.resolve(address, "").rate_limit_key
        if counted is not None and self._by_address[counted] >= self._max_per_address:
            return self._refuse(connection, 429, _TOO_MANY_OF_ADDRESS, "connections_address")
        if len(self._open) >= self._max_connections and not self.make_room():
            return self._refuse(connection, 503, _FULL, "connections")
        self._open.add(connection)
        if counted is not None:
            self._by_address[counted] += 1
        return None

    def unregister(self, connection: LimitedConnection) -> None:
        """Stop counting a connection; does nothing if it is not counted."""
        self._refused.pop(connection, None)
        if connection not in self._open:
            return
        self._open.discard(connection)
        counted = connection.counted
        if counted is not None:
            self._by_address[counted] -= 1
            if not self._by_address[counted]:
                del self._by_address[counted]

    def _refuse(self, connection: LimitedConnection, status: int, message: str, limit: str) -> tuple[int, str]:
        self.metrics.limited(limit)
        self._refusals[message] += 1
        self._keep_refused(connection)
        return status, message

    def _keep_refused(self, connection: LimitedConnection) -> None:
        """Keep a refused connection open until its client has the response."""
        if len(self._refused) >= MAX_REFUSED:
            oldest = next(iter(self._refused))
            del self._refused[oldest]
            oldest.abort()
        self._refused[connection] = None

    def make_room(self) -> bool:
        """Close the connection that has been idle longest. Returns False if none is idle.

        Under overload, recently used connections are kept: their clients would reconnect at once, and a new connection
        costs more than a refused one.
        """
        now = time.monotonic()
        min_idle = _KEPT_UNDER_OVERLOAD if self.admission.overloaded else 0.0
        if now < self._candidates_until:
            if not self._candidates:
                return False  # There was none within the last `_CANDIDATES_VALID` seconds.
            if self._close_candidate(now, min_idle):
                return True
            if min_idle:
                return False
        self._find_candidates(now)
        return self._close_candidate(now, min_idle)

    def _close_candidate(self, now: float, min_idle: float) -> bool:
        """Close the next candidate. min_idle: seconds."""
        while self._candidates:
            connection, since = self._candidates[0]
            if now - since < min_idle:
                return False
            self._candidates.popleft()
            # It may have closed or received a request meanwhile.
            if connection in self._open and since in (connection.idle_since(), connection.stalled_since()):
                self._close_to_make_room(connection)
                if not self._candidates:
                    self._candidates_until = now  # Select again for the next one.
                return True
        return False

    def _find_candidates(self, now: float) -> None:
        """Select the connections to close next."""
        found = [(since, connection) for connection in self._open if (since := connection.idle_since()) is not None]
        if not found:
            found = [
                (since, connection)
                for connection in self._open
                if (since := connection.stalled_since()) is not None and now - since > _STALLED_AFTER
            ]
        self._candidates = deque(longest_idle(found, _CANDIDATES))
        self._candidates_until = now + _CANDIDATES_VALID

    def _close_to_make_room(self, connection: LimitedConnection) -> None:
        self.metrics.limited("connections_idle")
        self._closed_idle += 1
        self.unregister(connection)
        if connection.give_way():
            self._keep_refused(connection)

    def reaper(self) -> PeriodicTask:
        """Return the background task that enforces deadlines. It is critical: without it no deadline holds."""
        return PeriodicTask("connection_reaper", self.reap, _CHECK_INTERVAL, critical=True, max_retry_delay=1.0)

    async def reap(self) -> None:
        """Check the deadlines of all connections once, and log refusals since the last call.

        A connection whose check fails is closed; the others are checked nevertheless.
        """
        self.load_shedder.report()
        now, pressure = time.monotonic(), self.pressure
        failure: Exception | None = None
        for connection in (*self._open, *self._refused):
            try:
                connection.check_deadlines(now, pressure)
            except Exception as exc:
                failure = exc
                connection.abort()
        for reason, count in self._refusals.items():
            _log.warning("connections turned away", reason=reason, count=count)
        self._refusals.clear()
        if self._closed_idle:
            _log.warning("idle connections closed to make room", count=self._closed_idle)
            self._closed_idle = 0
        if failure is not None:
            raise failure


def longest_idle(
    found: Iterable[tuple[float, LimitedConnection]], count: int
) -> Iterable[tuple[LimitedConnection, float]]:
    """Return up to `count` connections in the order in which to close them.

    The next one is always the connection that has been idle longest of the address with the most idle connections left.
    Of addresses with equally many, it is the one whose connection has been idle longest.
    """
    by_address: dict[object, list[tuple[float, LimitedConnection]]] = {}
    for since, connection in found:
        by_address.setdefault(connection.counted or connection, []).append((since, connection))
    for group in by_address.values():
        group.sort(key=lambda entry: entry[0], reverse=True)
    heap = [(-len(group), group[-1][0], number, group) for number, group in enumerate(by_address.values())]
    heapq.heapify(heap)
    for _ in range(count):
        if not heap:
            return
        _, _, number, group = heapq.heappop(heap)
        since, connection = group.pop()
        if group:
            heapq.heappush(heap, (-len(group), group[-1][0], number, group))
        yield connection, since
