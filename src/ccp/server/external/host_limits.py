"""Rate limit and circuit breaker for remote hosts that certificates name.

    permit = await throttle.acquire(host, caller)       # or raises HostLimited
    …
    permit.success()                                    # or permit.failure(), or permit.unused()

A host is scheme, name, port and the issuer whose certificates name it (`HostKey`). Certificates of
one CA can neither open the circuit of another CA's host nor use up its rate.

The rate of a host is shared by its callers in turn: each has a queue of its own, and a caller with one request waits
behind at most one request of each other caller. Queues, hosts and callers are bounded, and a host that was not called
for as long as a circuit stays open at most is forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ccp.errors import Unavailable
from ccp.server.external.circuit_breaker import Breaker

RATE: Final = 20.0  # Requests a second to one host; the field's responders are small machines.
BURST: Final = 20
_PAUSE: Final = (30.0, 600.0)  # Seconds that the circuit stays open: at first, and at most.
_MAX_HOSTS: Final = 4_096  # Some 4 MB.
_FORGOTTEN_AFTER: Final = _PAUSE[1]  # Without a call: by then the rate has recovered and the circuit may be tried.
_MAX_QUEUED: Final = 1_000  # Of one caller for one host: 50 seconds' worth.


class HostKey(NamedTuple):
    """issuer: `Certificate.issuer_id` of the CA whose certificates name the host."""

    scheme: str
    host: str
    port: int
    issuer: str

    @property
    def label(self) -> str:
        """For sentences: host and port."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"{name}:{self.port}"


class HostLimited(Unavailable):
    """A host is not called now: its circuit is open, or too many requests of the caller wait for it."""

    code = "host_limited"


@dataclass(slots=True, eq=False)
class _Host:
    """due: when the next request may be sent at the full rate; a burst may run ahead of it.

    called: when a request was last asked for. queues: by caller, in the order in which it is their turn.
    """

    breaker: Breaker
    called: float = 0.0
    due: float = 0.0
    queues: OrderedDict[str, deque[asyncio.Future[None]]] = field(default_factory=OrderedDict)
    timer: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True)
class Permit:
    """One request to a host. Exactly one of the methods has to be called afterwards.

    trial: whether it is the one request that an open circuit lets through after its pause.
    """

    breaker: Breaker
    trial: bool

    def success(self) -> None:
        """The host answered."""
        self.breaker.succeeded()

    def failure(self) -> int | None:
        """The host failed. Returns for how many seconds its circuit is open, if it is."""
        # Requests that were under way when the circuit opened say nothing new.
        if self.trial or not self.breaker.rests:
            self.breaker.failed()
        return self.breaker.seconds_left() if self.breaker.rests else None

    def unused(self) -> None:
        """The host was never asked: its name did not resolve, say."""
        if self.trial:
            self.breaker.unused()


class HostThrottle:
    """Belongs to one event loop."""

    def __init__(self, rate: float = RATE, burst: int = BURST, max_hosts: int = _MAX_HOSTS) -> None:
        """rate: requests a second to one host. burst: that may be sent at once."""
        self._interval = 1 / rate
        self._ahead = burst / rate
        self._max_hosts = max_hosts
        self._hosts: OrderedDict[HostKey, _Host] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hosts)

    async def acquire(self, key: HostKey, caller: str = "") -> Permit:
        """Wait until the caller may send a request to the host. Raises HostLimited."""
        host = self._host(key)
        self._check(host, key)
        if host.queues or not self._may_send(host):
            await self._queue(host, key, caller)
            self._check(host, key)
        else:
            self._count(host)
        trial = host.breaker.is_open
        if not host.breaker.lets_through():
            raise self._open(host, key)
        return Permit(host.breaker, trial)

    def _host(self, key: HostKey) -> _Host:
        host, now = self._hosts.get(key), _now()
        if host is None:
            self._forget_idle(now)
            if len(self._hosts) >= self._max_hosts:
                self._forget_one()
            host = self._hosts[key] = _Host(Breaker(_now, *_PAUSE))
        host.called = now
        self._hosts.move_to_end(key)
        return host

    def _forget_idle(self, now: float) -> None:
        """Forget a few of the hosts that were not called for a long time: more than are added."""
        for _ in range(4):
            key, host = next(iter(self._hosts.items()), (None, None))
            if key is None or host is None or host.queues or now - host.called < _FORGOTTEN_AFTER:
                return
            del self._hosts[key]

    def _forget_one(self) -> None:
        """The host that was not called for the longest time and that nothing waits for."""
        for key, host in self._hosts.items():
            if not host.queues:
                del self._hosts[key]
                return

    def _check(self, host: _Host, key: HostKey) -> None:
        if host.breaker.rests:
            raise self._open(host, key)

    def _open(self, host: _Host, key: HostKey) -> HostLimited:
        return HostLimited(
            f"{key.label} failed several times and is not called for a while.",
            retry_after=host.breaker.seconds_left(),
        )

    def _may_send(self, host: _Host) -> bool:
        return host.due - _now() <= self._ahead

    def _count(self, host: _Host) -> None:
        host.due = max(host.due, _now()) + self._interval

    async def _queue(self, host: _Host, key: HostKey, caller: str) -> None:
        queue = host.queues.setdefault(caller, deque())
        if len(queue) >= _MAX_QUEUED:
            raise HostLimited(f"Too many requests to {key.label} wait already.", retry_after=int(_MAX_QUEUED / RATE))
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self._set_timer(host)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in queue:
                queue.remove(turn)
                if not queue:
                    del host.queues[caller]
            raise

    def _set_timer(self, host: _Host) -> None:
        if host.timer is None and host.queues:
            host.timer = asyncio.get_running_loop().call_at(host.due - self._ahead, self._next, host)

    def _next(self, host: _Host) -> None:
        """Release waiting requests in turn at the rate; all of them once the circuit is open, to fail."""
        host.timer = None
        while host.queues and (self._may_send(host) or host.breaker.rests):
            caller, queue = next(iter(host.queues.items()))
            turn = queue.popleft()
            if queue:
                host.queues.move_to_end(caller)
            else:
                del host.queues[caller]
            if not turn.done():
                self._count(host)
                turn.set_result(None)
        self._set_timer(host)


@dataclass(slots=True)
class _Slots:
    """users: those that have one or wait for one."""

    free: asyncio.Semaphore
    users: int = 0


class KeyedSlots:
    """At most so many holders at a time for each key; a key without holders is forgotten."""

    def __init__(self, max_holders: int) -> None:
        self._max = max_holders
        self._slots: dict[str, _Slots] = {}

    @contextlib.asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        slots = self._slots.setdefault(key, _Slots(asyncio.Semaphore(self._max)))
        slots.users += 1
        try:
            async with slots.free:
                yield
        finally:
            slots.users -= 1
            if not slots.users:
                del self._slots[key]


def _now() -> float:
    return asyncio.get_running_loop().time()
