"""Name resolution in separate threads, with limits that confine a silent name server to its own names.

    addresses = await resolver.resolve("ocsp.example", owner="issuer or party")      # or raises ResolutionError

A lookup (getaddrinfo) cannot be cancelled: a thread that waits for a silent name server is blocked until the system's
timeout, often 20 s or more. So lookups use neither the event loop's small thread pool nor a shared pool of fixed size:

- Concurrent lookups are limited: `max_threads` in total, `max_per_party` per party that causes them (whatever issuers
  its certificates have), `max_per_owner` per owner (a party or an issuer), `max_per_domain` per owner and domain, and a
  quarter of the total for domains that were silent recently.
- Concurrent requests for one name share a lookup. A queued lookup waits only for lookups of the same owner.
- Callers wait for at most `timeout` seconds, including the time in the queue. The queue is bounded.
- Failures are cached for some seconds, timeouts for longer.

The threads are daemons: a process that exits does not wait for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias, TypeVar

from ccp.server.external.public_addresses import Address

_T = TypeVar("_T")
Lookup: TypeAlias = Callable[[str], list[str]]
"""Blocking function: returns the addresses of a name as text. Raises OSError, UnicodeError."""

TIMEOUT: Final = 1.5  # Less than the timeout of any exchange.
_FAILURE_TTL: Final = 5.0  # Seconds. A name that does not exist may be registered soon.
_TIMEOUT_TTL: Final = 15.0
_SLOW_TTL: Final = 300.0  # How long a domain counts as slow after a timeout.
_MAX_CACHED: Final = 1024
_MAX_ADDRESSES: Final = 32
_DOES_NOT_EXIST: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})


class ResolutionError(Exception):
    """A name was not resolved. missing: the name does not exist; False if that is not known."""

    def __init__(self, reason: str, *, missing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing


def system_lookup(host: str) -> list[str]:
    """Resolve a name with the system's resolver; addresses in its order."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Failure(NamedTuple):
    """A cached failure. Not an exception object, which would collect traceback frames each time it is raised.

    until: seconds of the event loop's clock. missing: see `ResolutionError`.
    """

    until: float
    reason: str
    missing: bool = False


@dataclass(slots=True, eq=False)
class _Flight:
    """A lookup that runs in a thread, or is queued (started_at: None). waiting: number of callers."""

    host: str
    domain: str
    owner: str
    party: str
    result: asyncio.Future[tuple[Address, ...]]
    waiting: int = 0
    started_at: float | None = None


class Resolver:
    """Resolves host names. Belongs to one event loop."""

    def __init__(
        self,
        lookup: Lookup | None = None,
        *,
        timeout: float = TIMEOUT,
        max_threads: int = 32,
        max_per_party: int = 12,
        max_per_owner: int = 4,
        max_per_domain: int = 2,
        max_queue: int = 256,
    ) -> None:
        """lookup: None for the system's resolver. timeout: seconds that a caller waits."""
        self._lookup = lookup
        self._timeout = timeout
        self._max_threads = max_threads
        self._max_slow = max(1, max_threads // 4)
        self._max_per_party = max_per_party
        self._max_per_owner = max_per_owner
        self._max_per_domain = max_per_domain
        self._max_queue = max_queue
        self._flights: dict[str, _Flight] = {}  # Running lookups, by host.
        self._waiting: dict[tuple[str, str, str], _Flight] = {}  # Queued lookups, by host, owner and party.
        self._queue: list[_Flight] = []
        self._running = 0
        self._slow_running = 0
        self._by_party: Counter[str] = Counter()
        self._by_owner: Counter[str] = Counter()
        self._by_domain: Counter[tuple[str, str]] = Counter()
        self._failures: OrderedDict[str, _Failure] = OrderedDict()
        self._slow: OrderedDict[str, float] = OrderedDict()

    async def resolve(self, host: str, owner: str = "", party: str = "") -> tuple[Address, ...]:
        """Return the addresses of a host, at least one. A literal IP address is returned as it is.

        owner: key of the per-owner limits. party: the party that causes the lookup; empty if it is the owner. Raises
        ResolutionError.
        """
        with contextlib.suppress(ValueError):
            return (ipaddress.ip_address(host.partition("%")[0]),)
        now = asyncio.get_running_loop().time()
        failed = self._failures.get(host)
        if failed is not None:
            if now < failed.until:
                raise ResolutionError(failed.reason, missing=failed.missing)
            del self._failures[host]
        flight = self._flights.get(host) or self._waiting.get((host, owner, party)) or self._begin(host, owner, party)
        flight.waiting += 1
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.shield(flight.result)
        except TimeoutError as exc:
            reason = f"{host} was not resolved within {self._timeout:g} s."
            if flight.started_at is not None and flight.started_at - now < self._timeout / 2:
                self._cache(self._failures, host, _Failure(now + self._timeout + _TIMEOUT_TTL, reason))
                self._cache(self._slow, flight.domain, now + self._timeout + _SLOW_TTL)
            raise ResolutionError(reason) from exc
        finally:
            flight.waiting -= 1
            if flight.started_at is None and not flight.waiting and flight in self._queue:
                self._dequeue(flight)
                flight.result.cancel()

    def _begin(self, host: str, owner: str, party: str) -> _Flight:
        flight = _Flight(host, _domain_of(host), owner, party, asyncio.get_running_loop().create_future())
        if self._may_start(flight):
            self._start(flight)
        elif len(self._queue) < self._max_queue:
            self._waiting[host, owner, party] = flight
            self._queue.append(flight)
        else:
            raise ResolutionError("Too many names are waiting to be resolved.")
        return flight

    def _dequeue(self, flight: _Flight) -> None:
        self._queue.remove(flight)
        del self._waiting[flight.host, flight.owner, flight.party]

    def _is_slow(self, domain: str) -> bool:
        return self._slow.get(domain, 0.0) > asyncio.get_running_loop().time()

    def _may_start(self, flight: _Flight) -> bool:
        return (
            self._running < self._max_threads
            and flight.host not in self._flights
            and (not flight.party or self._by_party[flight.party] < self._max_per_party)
            and self._by_owner[flight.owner] < self._max_per_owner
            and self._by_domain[flight.owner, flight.domain] < self._max_per_domain
            and (self._slow_running < self._max_slow or not self._is_slow(flight.domain))
        )

    def _start(self, flight: _Flight) -> None:
        loop = asyncio.get_running_loop()
        slow = self._is_slow(flight.domain)
        flight.started_at = loop.time()
        self._flights[flight.host] = flight
        self._running += 1
        self._slow_running += slow
        self._by_party[flight.party] += 1
        self._by_owner[flight.owner] += 1
        self._by_domain[flight.owner, flight.domain] += 1

        def run() -> None:
            found: list[str] | Exception
            try:
                found = (self._lookup or system_lookup)(flight.host)
            except Exception as exc:
                found = exc
            except BaseException as exc:  # The slot must be released, whatever ended the lookup.
                found = RuntimeError(f"the lookup was ended by {type(exc).__name__}")
            with contextlib.suppress(RuntimeError):  # The event loop was closed in the meantime.
                loop.call_soon_threadsafe(self._finish, flight, slow, found)

        try:
            threading.Thread(target=run, name="lookup", daemon=True).start()
        except RuntimeError as exc:  # The system cannot start another thread.
            self._finish(flight, slow, exc)

    def _finish(self, flight: _Flight, slow: bool, found: list[str] | Exception) -> None:
        self._running -= 1
        self._slow_running -= slow
        self._by_party[flight.party] -= 1
        self._by_owner[flight.owner] -= 1
        self._by_domain[flight.owner, flight.domain] -= 1
        # Unary plus removes zero counts, so the counters stay as small as the number of running lookups.
        self._by_party, self._by_owner, self._by_domain = +self._by_party, +self._by_owner, +self._by_domain
        self._flights.pop(flight.host, None)
        same = [queued for queued in self._queue if queued.host == flight.host]
        for queued in same:
            self._dequeue(queued)
        results = [queued.result for queued in (flight, *same) if not queued.result.done()]
        try:
            addresses = _read(flight.host, found)
        except ResolutionError as exc:
            until = asyncio.get_running_loop().time() + _FAILURE_TTL
            self._cache(self._failures, flight.host, _Failure(until, str(exc), exc.missing))
            for result in results:
                result.set_exception(exc)
                result.exception()  # Marks the exception as retrieved: the callers may be gone.
        else:
            self._failures.pop(flight.host, None)
            for result in results:
                result.set_result(addresses)
        for queued in tuple(self._queue):
            if self._running >= self._max_threads:
                break
            if self._may_start(queued):
                self._dequeue(queued)
                self._start(queued)

    @staticmethod
    def _cache(cache: OrderedDict[str, _T], name: str, value: _T) -> None:
        cache[name] = value
        cache.move_to_end(name)
        if len(cache) > _MAX_CACHED:
            cache.popitem(last=False)


def _read(host: str, found: list[str] | Exception) -> tuple[Address, ...]:
    """Check the outcome of a lookup. Raises ResolutionError."""
    if isinstance(found, UnicodeError):
        raise ResolutionError(f"{host} is not a valid host name.", missing=True) from found
    if isinstance(found, Exception):
        missing = isinstance(found, socket.gaierror) and found.errno in _DOES_NOT_EXIST
        raise ResolutionError(f"{host} was not resolved: {found}.", missing=missing) from found
    addresses = tuple(ipaddress.ip_address(text.partition("%")[0]) for text in found[:_MAX_ADDRESSES])
    if not addresses:
        raise ResolutionError(f"{host} has no address.", missing=True)
    return addresses


def _domain_of(host: str) -> str:
    """The part of a name that one registrant usually controls: two labels, or three below a domain such as co.uk."""
    labels = host.lower().rstrip(".").split(".")
    below_short = len(labels) >= 3 and len(labels[-2]) <= 3 and len(labels[-1]) == 2
    return ".".join(labels[-3 if below_short else -2 :])
