"""An open-loop load generator: requests are due at random times, independent of the server.

Latency is measured from the time when a request was due, whether or not a connection was free then. A client gives up
`patience` seconds after that time, as charging stations do: it closes the connection and opens another one for a later
request. A slow server therefore does not reduce the load, and work for clients that have disconnected is visible.

    streams = [Stream("cars", messages, rate=60, seconds=30, connections=200)]
    with running(port, streams) as run:
        ...                                    # disturb the server; run.began is the start, as time.monotonic()
        outcomes = run.result()
    outcomes["cars"].share(within=4.0)         # of all requests that were due

The generator is a process of its own, with one thread and one epoll. It speaks HTTP/1.1 with Content-Length only, and
keeps the status and a label of each response.
"""

from __future__ import annotations

import errno
import gc
import heapq
import os
import pickle
import random
import resource
import select
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PATIENCE: Final = 4.5
"""Seconds. A charging station gives up after these (the car after five)."""
UNANSWERED: Final = 0
"""The status of a request that had no answer: its client gave up, or the connection was refused or closed."""
_CONNECTS_AT_ONCE: Final = 100
_RECEIVE: Final = 65_536


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests of one kind.

    messages: whole HTTP requests, sent in turn. rate: mean requests per second. seconds: for which requests are due.
    start: seconds after the start of the run. connections: maximum at a time; a request that finds none free waits.
    labels: (label, bytes): the label of a response is the first whose bytes it contains, otherwise "".
    open_first: whether all connections are opened before the run starts.
    """

    name: str
    messages: tuple[bytes, ...]
    rate: float
    seconds: float
    connections: int
    start: float = 0.0
    patience: float = PATIENCE
    labels: tuple[tuple[str, bytes], ...] = ()
    open_first: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """due: seconds since the run's start. latency: seconds since then. status: of HTTP, or `UNANSWERED`."""

    due: float
    latency: float
    status: int
    label: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of every request of a stream, in the order of completion."""

    stream: Stream
    answers: tuple[Answer, ...]

    def due(self, start: float = 0.0, end: float = float("inf")) -> list[Answer]:
        """Requests that were due in a part of the run."""
        return [answer for answer in self.answers if start <= answer.due < end]

    def good(
        self, within: float, status: int = 200, label: str | None = None, start: float = 0.0, end: float = float("inf")
    ) -> int:
        """Number of requests with the wanted answer in time. within: seconds. label: None for any."""
        return sum(
            answer.status == status and answer.latency <= within and label in (None, answer.label)
            for answer in self.due(start, end)
        )

    def share(self, within: float, start: float = 0.0, end: float = float("inf")) -> float:
        """Share of requests with any answer in time."""
        found = self.due(start, end)
        return sum(answer.status != UNANSWERED and answer.latency <= within for answer in found) / max(1, len(found))

    def percentile(
        self, share: float, status: int | None = None, start: float = 0.0, end: float = float("inf")
    ) -> float:
        """Latency in seconds. status: only of this status; None counts a missing answer as the patience."""
        found = sorted(answer.latency for answer in self.due(start, end) if status in (None, answer.status))
        return found[min(len(found) - 1, int(len(found) * share))] if found else float("nan")

    def statuses(self, start: float = 0.0, end: float = float("inf")) -> Counter[int]:
        return Counter(answer.status for answer in self.due(start, end))


class Run:
    """A running load."""

    def __init__(self, process: subprocess.Popen[bytes], streams: Sequence[Stream], began: float) -> None:
        self._process, self._streams, self.began = process, streams, began

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def result(self) -> dict[str, Outcome]:
        """Wait for the end. Raises RuntimeError if the generator failed."""
        assert self._process.stdout is not None
        output = self._process.stdout.read()
        if self._process.wait(30) != 0:
            raise RuntimeError("The load generator failed; its own message stands above.")
        found: dict[str, list[Answer]] = pickle.loads(output)
        return {stream.name: Outcome(stream, tuple(found[stream.name])) for stream in self._streams}


@contextmanager
def running(port: int, streams: Sequence[Stream], *, core: int | None = None, host: str = "127.0.0.1") -> Iterator[Run]:
    """Start a load. core: pins the generator to this processor. The generator ends with the block."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "rig.open_loop"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(pickle.dumps((host, port, tuple(streams), core)))
            process.stdin.close()
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("The load generator did not start; its own message stands above.")
            yield Run(process, streams, float(line))
        finally:
            if process.poll() is None:
                process.kill()


class _Connection:
    """One socket of a stream.

    due: time of its request; negative without one. number: of that request, within the stream.
    """

    __slots__ = ("buffer", "connected", "due", "needed", "number", "socket", "unsent")

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.connected = False
        self.due = -1.0
        self.number = 0
        self.unsent = memoryview(b"")
        self.buffer = bytearray()
        self.needed = 0


class _Load:
    """A stream during the run."""

    def __init__(self, stream: Stream, generator: _Generator, seed: int) -> None:
        self.stream = stream
        self.generator = generator
        self.chance = random.Random(seed)
        self.ends = stream.start + stream.seconds
        self.next_due = stream.start + self.chance.expovariate(stream.rate)
        self.connections = [_Connection() for _ in range(stream.connections)]
        self.idle = deque(self.connections)
        self.waiting: deque[float] = deque()
        self.in_flight: list[tuple[float, int, _Connection]] = []
        self.sent = 0
        self.busy = 0
        self.answers: list[Answer] = []

    @property
    def over(self) -> bool:
        return self.next_due >= self.ends and not self.waiting and not self.busy

    def turn(self, now: float) -> None:
        """Send due requests and give up late ones. now: seconds since the start."""
        patience = self.stream.patience
        while self.in_flight and (self.in_flight[0][0] <= now or self.in_flight[0][2].number != self.in_flight[0][1]):
            _, number, connection = heapq.heappop(self.in_flight)
            if connection.number == number and connection.due >= 0:
                self.ended(connection, now, UNANSWERED, "gave up")
                self.generator.close(connection)
        while self.next_due <= now and self.next_due < self.ends:
            self.waiting.append(self.next_due)
            self.next_due += self.chance.expovariate(self.stream.rate)
        while self.waiting and self.waiting[0] + patience <= now:
            due = self.waiting.popleft()
            self.answers.append(Answer(due, now - due, UNANSWERED, "unsent"))
        while self.waiting and self.idle:
            self.send(self.idle.popleft(), self.waiting.popleft())

    def send(self, connection: _Connection, due: float) -> None:
        message = self.stream.messages[self.sent % len(self.stream.messages)]
        self.sent += 1
        connection.due, connection.number = due, self.sent
        connection.needed = 0
        connection.buffer.clear()
        self.busy += 1
        heapq.heappush(self.in_flight, (due + self.stream.patience, connection.number, connection))
        connection.unsent = memoryview(message)
        if connection.socket is None:
            self.generator.connect(connection, self)
        elif connection.connected:
            self.push(connection)

    def push(self, connection: _Connection) -> None:
        assert connection.socket is not None
        try:
            connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.lost(connection)
            return
        if connection.unsent:
            self.generator.want_write(connection)

    def readable(self, connection: _Connection) -> None:
        assert connection.socket is not None
        try:
            data = connection.socket.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.lost(connection)
            return
        if connection.due < 0:
            return  # What a server says without having been asked, before it closes.
        buffer = connection.buffer
        buffer += data
        if not connection.needed:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(buffer[: end + 2]).lower()
            length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            connection.needed = end + 4 + int(length or 0)
        if len(buffer) < connection.needed:
            return
        label = next((label for label, content in self.stream.labels if content in buffer), "")
        self.ended(connection, self.generator.now(), int(buffer[9:12]), label)
        if b"\r\nconnection: close" in bytes(buffer[:2048]).lower():
            self.generator.close(connection)

    def lost(self, connection: _Connection) -> None:
        """Handle a connection that the server refused or closed."""
        if connection.due >= 0:
            self.ended(connection, self.generator.now(), UNANSWERED, "closed")
        self.generator.close(connection)

    def ended(self, connection: _Connection, now: float, status: int, label: str) -> None:
        self.answers.append(Answer(connection.due, now - connection.due, status, label))
        connection.due, connection.number = -1.0, 0
        self.busy -= 1
        self.idle.append(connection)


class _Generator:
    def __init__(self, host: str, port: int, streams: Sequence[Stream]) -> None:
        self._address = host, port
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._epoll = select.epoll()
        self._by_descriptor: dict[int, tuple[_Connection, _Load]] = {}
        self.loads = [_Load(stream, self, 70 + place) for place, stream in enumerate(streams)]
        self._began = time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self._began

    def open_first(self) -> None:
        """Open the connections, a hundred at a time: more would overflow the server's queue of new connections."""
        wanted = deque((c, load) for load in self.loads if load.stream.open_first for c in load.connections)
        deadline = time.monotonic() + 60
        pending: set[_Connection] = set()
        while (wanted or pending) and time.monotonic() < deadline:
            while wanted and len(pending) < _CONNECTS_AT_ONCE:
                connection, load = wanted.popleft()
                self.connect(connection, load)
                pending.add(connection)
            self._poll(0.05)
            pending = {connection for connection in pending if connection.socket and not connection.connected}

    def run(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()  # A collection would stop this loop, and its length would be taken for the server's.
        self._began = time.monotonic()
        print(self._began, flush=True)
        loads = self.loads
        while not all(load.over for load in loads):
            now = self.now()
            for load in loads:
                load.turn(now)
            next_due = min((load.next_due for load in loads if load.next_due < load.ends), default=now + 0.05)
            self._poll(max(0.0, min(next_due - self.now(), 0.02)))

    def _poll(self, timeout: float) -> None:
        ready = self._epoll.poll(0)
        if not ready and timeout > 0:
            select.select([self._epoll], [], [], timeout)  # In microseconds; epoll itself counts milliseconds.
            ready = self._epoll.poll(0)
        for descriptor, events in ready:
            found = self._by_descriptor.get(descriptor)
            if found is None:
                continue
            connection, load = found
            if not connection.connected:
                self._connected(connection, load, events)
            elif events & select.EPOLLOUT:
                self._epoll.modify(descriptor, select.EPOLLIN)
                load.push(connection)
            else:
                load.readable(connection)

    def connect(self, connection: _Connection, load: _Load) -> None:
        made = socket.socket(self._family, socket.SOCK_STREAM)
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.socket, connection.connected = made, False
        self._by_descriptor[made.fileno()] = connection, load
        self._epoll.register(made.fileno(), select.EPOLLOUT)
        if made.connect_ex(self._address) not in (0, errno.EINPROGRESS):
            load.lost(connection)

    def _connected(self, connection: _Connection, load: _Load, events: int) -> None:
        assert connection.socket is not None
        if events & (select.EPOLLERR | select.EPOLLHUP) or connection.socket.getsockopt(
            socket.SOL_SOCKET, socket.SO_ERROR
        ):
            load.lost(connection)
            return
        connection.connected = True
        self._epoll.modify(connection.socket.fileno(), select.EPOLLIN)
        if connection.unsent:
            load.push(connection)

    def want_write(self, connection: _Connection) -> None:
        assert connection.socket is not None
        self._epoll.modify(connection.socket.fileno(), select.EPOLLOUT)

    def close(self, connection: _Connection) -> None:
        made, connection.socket, connection.connected = connection.socket, None, False
        connection.unsent = memoryview(b"")
        if made is not None:
            del self._by_descriptor[made.fileno()]
            with suppress(OSError):
                self._epoll.unregister(made.fileno())
            made.close()


def _child() -> None:
    host, port, streams, core = pickle.loads(sys.stdin.buffer.read())
    if core is not None:
        os.sched_setaffinity(0, {core})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = sum(stream.connections for stream in streams) + 64
    if needed > hard:
        sys.exit(f"{needed} descriptors are needed, {hard} are allowed.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    generator = _Generator(host, port, streams)
    generator.open_first()
    generator.run()
    sys.stdout.buffer.write(pickle.dumps({load.stream.name: load.answers for load in generator.loads}))


if __name__ == "__main__":
    from rig import open_loop  # What is pickled must not be of the module __main__.

    open_loop._child()
