"""Rate limit and circuit breaker for remote hosts that certificates name.

    permit = await throttle.acquire(host, caller)       # or raises HostLimited
    …
    permit.record_success()                             # or permit.record_failure(), or permit.release()

A host is scheme, name, port and the issuer whose certificates name it (`HostKey`). Certificates of one CA can neither
open the circuit of another CA's host nor use up its rate.

Callers share the rate of a host by round robin: each has its own queue, and a caller with one request waits behind at
most one request of each other caller. Queues, hosts and callers are bounded. A host is forgotten when it was not called
for as long as a circuit can stay open.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ccp.errors import Unavailable
from ccp.server.external.circuit_breaker import CircuitBreaker

RATE: Final = 20.0  # Requests per second to one host; OCSP responders in this field are small machines.
BURST: Final = 20
_RESET_TIMEOUT: Final = 30.0
_MAX_RESET_TIMEOUT: Final = 600.0
_MAX_HOSTS: Final = 4_096  # Some 4 MB.
_MAX_IDLE: Final = _MAX_RESET_TIMEOUT  # By then the rate has recovered and the circuit lets a trial pass.
_MAX_QUEUED: Final = 1_000  # Per caller and host; the rate serves them in 50 seconds.


class HostKey(NamedTuple):
    """A host, separately for each CA whose certificates name it. issuer: `Certificate.issuer_key_id` of that CA."""

    scheme: str
    host: str
    port: int
    issuer: str

    @property
    def label(self) -> str:
        """Host and port, for messages."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"{name}:{self.port}"


class HostLimited(Unavailable):
    """The circuit of the host is open, or too many requests of the caller are queued for it."""

    outcome = "host_limited"


@dataclass(slots=True, eq=False)
class _Host:
    """State of one host.

    last_used: when a request last asked for a permit. due: when the next request may be sent at the full rate; a burst
    may run ahead of it. queues: by caller, in round-robin order. Times are seconds of the event loop's clock.
    """

    breaker: CircuitBreaker
    last_used: float = 0.0
    due: float = 0.0
    queues: OrderedDict[str, deque[asyncio.Future[None]]] = field(default_factory=OrderedDict)
    timer: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True)
class Permit:
    """Permission for one request to a host. Call exactly one of the methods afterwards.

    is_trial: whether it is the trial request of a half-open circuit.
    """

    breaker: CircuitBreaker
    is_trial: bool

    def record_success(self) -> None:
        """The host answered."""
        self.breaker.record_success()

    def record_failure(self) -> int | None:
        """The host failed. Returns the seconds until its circuit lets a trial pass; None if it is closed."""
        # A request that was under way when the circuit opened is no evidence about the time since.
        if self.is_trial or not self.breaker.is_open:
            self.breaker.record_failure()
        return self.breaker.retry_after() if self.breaker.is_open else None

    def release(self) -> None:
        """No request was sent, for instance because the name did not resolve."""
        if self.is_trial:
            self.breaker.release()


class HostThrottle:
    """Limits the requests to each host. Belongs to one event loop."""

    def __init__(self, rate: float = RATE, burst: int = BURST, max_hosts: int = _MAX_HOSTS) -> None:
        """rate: requests per second to one host. burst: requests that may be sent at once."""
        self._interval = 1 / rate
        self._ahead = burst / rate
        self._max_hosts = max_hosts
        self._hosts: OrderedDict[HostKey, _Host] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hosts)

    async def acquire(self, key: HostKey, caller: str = "") -> Permit:
        """Wait until the caller may send a request to the host. Raises HostLimited."""
        host = self._host(key)
        self._check_circuit(host, key)
        if host.queues or not self._may_send(host):
            await self._wait_in_queue(host, key, caller)
            self._check_circuit(host, key)
        else:
            self._debit(host)
        is_trial = not host.breaker.is_closed
        if not host.breaker.allow():
            raise self._circuit_open(host, key)
        return Permit(host.breaker, is_trial)

    def _host(self, key: HostKey) -> _Host:
        host, now = self._hosts.get(key), _now()
        if host is None:
            self._remove_idle(now)
            if len(self._hosts) >= self._max_hosts:
                self._evict()
            host = self._hosts[key] = _Host(CircuitBreaker(_now, _RESET_TIMEOUT, _MAX_RESET_TIMEOUT))
        host.last_used = now
        self._hosts.move_to_end(key)
        return host

    def _remove_idle(self, now: float) -> None:
        """Remove up to four idle hosts. Runs for each new host, so removal keeps up with additions."""
        for _ in range(4):
            key, host = next(iter(self._hosts.items()), (None, None))
            if key is None or host is None or host.queues or now - host.last_used < _MAX_IDLE:
                return
            del self._hosts[key]

    def _evict(self) -> None:
        """Remove the least recently used host that has no queue."""
        for key, host in self._hosts.items():
            if not host.queues:
                del self._hosts[key]
                return

    def _check_circuit(self, host: _Host, key: HostKey) -> None:
        if host.breaker.is_open:
            raise self._circuit_open(host, key)

    def _circuit_open(self, host: _Host, key: HostKey) -> HostLimited:
        return HostLimited(
            f"{key.label} failed several times and is not called for a while.",
            retry_after=host.breaker.retry_after(),
        )

    def _may_send(self, host: _Host) -> bool:
        return host.due - _now() <= self._ahead

    def _debit(self, host: _Host) -> None:
        host.due = max(host.due, _now()) + self._interval

    async def _wait_in_queue(self, host: _Host, key: HostKey, caller: str) -> None:
        queue = host.queues.setdefault(caller, deque())
        if len(queue) >= _MAX_QUEUED:
            raise HostLimited(f"Too many requests to {key.label} wait already.", retry_after=int(_MAX_QUEUED / RATE))
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(waiter)
        self._set_timer(host)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in queue:
                queue.remove(waiter)
                if not queue:
                    del host.queues[caller]
            raise

    def _set_timer(self, host: _Host) -> None:
        if host.timer is None and host.queues:
            host.timer = asyncio.get_running_loop().call_at(host.due - self._ahead, self._release_next, host)

    def _release_next(self, host: _Host) -> None:
        """Release queued requests at the rate; if the circuit is open, release all of them, and they fail."""
        host.timer = None
        while host.queues and (self._may_send(host) or host.breaker.is_open):
            caller, queue = next(iter(host.queues.items()))
            waiter = queue.popleft()
            if queue:
                host.queues.move_to_end(caller)
            else:
                del host.queues[caller]
            if not waiter.done():
                self._debit(host)
                waiter.set_result(None)
        self._set_timer(host)


@dataclass(slots=True)
class _Slots:
    """The semaphore of one key. users: tasks that hold it or wait for it."""

    semaphore: asyncio.Semaphore
    users: int = 0


class KeyedSlots:
    """A semaphore per key. Keys without users are removed."""

    def __init__(self, max_holders: int) -> None:
        self._max = max_holders
        self._slots: dict[str, _Slots] = {}

    @contextlib.asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """Hold a slot of the key; waits for a free one."""
        slots = self._slots.setdefault(key, _Slots(asyncio.Semaphore(self._max)))
        slots.users += 1
        try:
            async with slots.semaphore:
                yield
        finally:
            slots.users -= 1
            if not slots.users:
                del self._slots[key]


def _now() -> float:
    return asyncio.get_running_loop().time()
