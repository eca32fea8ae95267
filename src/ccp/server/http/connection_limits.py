"""Limits on the connections of one worker: how many there may be, in all and from one address, and which are closed.

- A connection counts from accept, before a TLS handshake.
- A full worker closes the connection that has been idle longest, of the address with the most idle connections, and
  accepts the new one. So a client that opens many loses its own. A connection from a trusted proxy counts as an address
  of its own, since there are many clients behind a proxy.
- Idle means that no request is under way. If all have one, those are closed whose client has for more than a second not
  sent the rest of its body or not read its answer.
- The fuller the worker, the shorter the timeouts (`pressure`).
- A refused client gets an answer. At most `MAX_REFUSED` refused connections are open; the newest replaces the oldest.
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
"""Refused connections of one worker that are open at a time, besides `max_connections`."""

_FORWARDED: Final = 256
_CHECK_INTERVAL: Final = 0.5
_STALLED_AFTER: Final = 1.0
_KEPT_UNDER_OVERLOAD: Final = 2.0
# Candidates for closing are looked up together, since that takes a look at every connection.
_CANDIDATES: Final = 32
_CANDIDATES_VALID: Final = 0.1

_FULL: Final = "The pool has too many connections just now."
_TOO_MANY_OF_ADDRESS: Final = "There are too many connections from this address."


class LimitedConnection(Protocol):
    """What the limits need of a connection. Times are of the monotonic clock, in seconds."""

    counted: bytes | None
    """The address that it counts for; None behind a trusted proxy."""

    def look(self, now: float, pressure: float) -> None:
        """End what is overdue."""

    def idle_since(self) -> float | None:
        """None while a request is under way."""

    def stalled_since(self) -> float | None:
        """Since when a request under way has waited for its client; None where it does not."""

    def give_way(self) -> bool:
        """Make room for another connection. Returns whether its client still has to get the answer."""

    def abort(self) -> None:
        """Close at once."""


def shortened(timeout: float, shortest: float, pressure: float) -> float:
    """A timeout under pressure: as it is at 0, the shortest at 1."""
    return timeout - max(0.0, timeout - shortest) * pressure


class ConnectionRegistry:
    """The connections of one worker."""

    def __init__(self, config: Settings, proxies: TrustedProxies, metrics: Metrics | None = None) -> None:
        self.max_body = config.max_body
        self.seconds = float(config.read_timeout)
        self._most = config.max_connections
        self._most_of_one = config.max_connections_per_address
        self._proxies = proxies
        self.metrics = metrics or Metrics()
        self._open: set[LimitedConnection] = set()
        self._by_address: Counter[bytes] = Counter()
        self._refused: dict[LimitedConnection, None] = {}  # In the order of their refusal.
        self._candidates: deque[tuple[LimitedConnection, float]] = deque()
        self._candidates_until = 0.0
        self._turned_away: Counter[str] = Counter()
        self._gave_way = 0
        self.writing = WriteBatcher()
        self.admission = Admission()
        self.overload = LoadShedder(self.admission, self.metrics)

    @property
    def pressure(self) -> float:
        """0 while at least half of the connections are free, 1 when none is."""
        return min(1.0, max(0.0, 2 * len(self._open) / self._most - 1))

    def counted_address(self, address: str | None, headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
        """What the client of a request counts as: its own address where a trusted proxy tells it."""
        lines = [value for name, value in headers if name == b"x-forwarded-for"]
        return self._proxies.resolve(address, b",".join(lines)[-_FORWARDED:].decode("latin-1")).rate_limit_key

    def enter(self, connection: LimitedConnection, address: str | None) -> tuple[int, str] | None:
        """Count a connection. Returns None, or the status and the sentence with which it is refused."""
        connection.counted = counted = self._proxies.resolve(address, "").rate_limit_key
        if counted is not None and self._by_address[counted] >= self._most_of_one:
            return self._refuse(connection, 429, _TOO_MANY_OF_ADDRESS, "connections_address")
        if len(self._open) >= self._most and not self.make_room():
            return self._refuse(connection, 503, _FULL, "connections")
        self._open.add(connection)
        if counted is not None:
            self._by_address[counted] += 1
        return None

    def leave(self, connection: LimitedConnection) -> None:
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

    def _refuse(self, connection: LimitedConnection, status: int, sentence: str, limit: str) -> tuple[int, str]:
        self.metrics.limited(limit)
        self._turned_away[sentence] += 1
        self._tell(connection)
        return status, sentence

    def _tell(self, connection: LimitedConnection) -> None:
        """Keep a refused connection open until its client has the answer."""
        if len(self._refused) >= MAX_REFUSED:
            oldest = next(iter(self._refused))
            del self._refused[oldest]
            oldest.abort()
        self._refused[connection] = None

    def make_room(self) -> bool:
        """Close the connection that has been idle longest. Returns False where none is.

        Under overload connections that were used within some seconds are kept: their clients would be back at once, and
        a new connection costs more than the refusal of one.
        """
        now = time.monotonic()
        least = _KEPT_UNDER_OVERLOAD if self.admission.overloaded else 0.0
        if now < self._candidates_until:
            if not self._candidates:
                return False  # There was none a moment ago.
            if self._close_candidate(now, least):
                return True
            if least:
                return False
        self._find_candidates(now)
        return self._close_candidate(now, least)

    def _close_candidate(self, now: float, least: float) -> bool:
        """least: seconds that it has to have been idle."""
        while self._candidates:
            connection, since = self._candidates[0]
            if now - since < least:
                return False
            self._candidates.popleft()
            # It may have gone, or have a request by now.
            if connection in self._open and since in (connection.idle_since(), connection.stalled_since()):
                self._make_way(connection)
                if not self._candidates:
                    self._candidates_until = now  # Look again for the next one.
                return True
        return False

    def _find_candidates(self, now: float) -> None:
        """Fill the list of connections to close next."""
        found = [(since, each) for each in self._open if (since := each.idle_since()) is not None]
        if not found:
            found = [
                (since, each)
                for each in self._open
                if (since := each.stalled_since()) is not None and now - since > _STALLED_AFTER
            ]
        self._candidates = deque(longest_idle(found, _CANDIDATES))
        self._candidates_until = now + _CANDIDATES_VALID

    def _make_way(self, connection: LimitedConnection) -> None:
        self.metrics.limited("connections_idle")
        self._gave_way += 1
        self.leave(connection)
        if connection.give_way():
            self._tell(connection)

    def watching(self) -> PeriodicTask:
        """Closes what is overdue. Critical: without it no limit on time holds."""
        return PeriodicTask("connection_reaper", self.watch, _CHECK_INTERVAL, critical=True, max_retry_delay=1.0)

    async def watch(self) -> None:
        """One round: close what is overdue; log what was refused since the last one.

        A connection whose check fails is closed, and does not keep the others from being checked.
        """
        self.overload.report()
        now, pressure = time.monotonic(), self.pressure
        failure: Exception | None = None
        for connection in (*self._open, *self._refused):
            try:
                connection.look(now, pressure)
            except Exception as exc:
                failure = exc
                connection.abort()
        for reason, count in self._turned_away.items():
            _log.warning("connections turned away", reason=reason, count=count)
        self._turned_away.clear()
        if self._gave_way:
            _log.warning("idle connections closed to make room", count=self._gave_way)
            self._gave_way = 0
        if failure is not None:
            raise failure


def longest_idle(
    found: Iterable[tuple[float, LimitedConnection]], count: int
) -> Iterable[tuple[LimitedConnection, float]]:
    """Up to so many connections, in the order in which they give way: always the one that has been idle longest of the
    address that has the most idle ones left; of addresses with as many, the one whose connection has been idle longest.
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
