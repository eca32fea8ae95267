"""Load generation: wrk if it is installed; otherwise, and for paced load, a generator of our own.

    loads = Loads(folder)
    load = loads.closed(operation, port, connections=16, seconds=3)             # closed loop
    load = loads.paced(operation, port, connections=64, seconds=8, rate=800)    # open loop

An error, an unexpected status, or a response that is shorter than the expected one ends the run.
"""

from __future__ import annotations

import gc
import json
import random
import select
import shutil
import socket
import subprocess
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rig.world import Operation

_SAMPLES: Final = 24

_SCRIPT: Final = """
local messages, count, place = {}, 0, 0
local file = assert(io.open(%(file)s, "rb"))
while true do
  local length = file:read("*n")
  if not length then break end
  file:read(1)
  count = count + 1
  messages[count] = file:read(length)
end
file:close()
request = function()
  place = place %% count + 1
  return messages[place]
end
init = function(args)
  place = tonumber(args[1])
end
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{"requests":%%d,"us":%%d,"bytes":%%d,"errors":[%%d,%%d,%%d,%%d,%%d],"p50":%%d,"p95":%%d,"p99":%%d}\\n',
    summary.requests, summary.duration, summary.bytes, e.connect, e.read, e.write, e.status, e.timeout,
    latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
"""


class LoadError(Exception):
    """A response that ends the run."""


@dataclass(frozen=True, slots=True)
class Load:
    """Result of a load: answered requests, seconds, and percentiles of latency in ms."""

    requests: int
    seconds: float
    p50: float
    p95: float
    p99: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


class Loads:
    """Closed loops: each connection sends its next request after a response."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._wrk = shutil.which("wrk")
        self._scripts: dict[tuple[str, int], Path] = {}
        self._places: dict[tuple[str, int], int] = {}

    @property
    def generator(self) -> str:
        if self._wrk is None:
            return "a generator of our own in Python (wrk is not installed)"
        version = subprocess.run([self._wrk, "--version"], capture_output=True, text=True, check=False).stdout
        return " ".join(version.split()[:2])

    def closed(self, operation: Operation, port: int, connections: int, seconds: float) -> Load:
        length = check(operation, port)
        place = self._places.get((operation.name, port), 0)
        if self._wrk is None:
            seen = drive(operation, port, connections, seconds, place=place)
            self._sent(operation, port, seen.requests)
            return seen
        command = [self._wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", self._script(operation)]
        command += [f"http://127.0.0.1:{port}", "--", str(place)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=False)
        if ended.returncode != 0:
            raise LoadError(f"{operation.name}: wrk failed: {ended.stderr or ended.stdout}")
        result = json.loads(ended.stdout.strip().rpartition("\n")[2])
        if any(result["errors"]):
            raise LoadError(f"{operation.name}: connect, read, write, status, timeout errors: {result['errors']}")
        if result["bytes"] / result["requests"] < 0.95 * length:
            found = result["bytes"] / result["requests"]
            raise LoadError(f"{operation.name}: answers have {found:.0f} bytes, not {length:.0f}")
        check(operation, port)
        self._sent(operation, port, result["requests"] + connections)
        p50, p95, p99 = (result[name] / 1e3 for name in ("p50", "p95", "p99"))
        return Load(result["requests"], result["us"] / 1e6, p50, p95, p99)

    def paced(self, operation: Operation, port: int, connections: int, seconds: float, rate: float) -> Load:
        """See `drive`."""
        seen = drive(operation, port, connections, seconds, rate, self._places.get((operation.name, port), 0))
        self._sent(operation, port, seen.requests)
        return seen

    def _sent(self, operation: Operation, port: int, count: int) -> None:
        """Continue after the last message, so that no message repeats before all others were sent."""
        key = operation.name, port
        self._places[key] = (self._places.get(key, 0) + count) % len(operation.messages)

    def _script(self, operation: Operation) -> Path:
        key = operation.name, hash(operation.messages)
        if key not in self._scripts:
            place = self._folder / f"load-{len(self._scripts)}"
            with place.with_suffix(".messages").open("wb") as file:
                for message in operation.messages:
                    file.write(b"%d\n%b" % (len(message), message))
            script = place.with_suffix(".lua")
            script.write_text(_SCRIPT % {"file": json.dumps(str(place.with_suffix(".messages")))})
            self._scripts[key] = script
        return self._scripts[key]


class _Connection:
    def __init__(self, port: int, status: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._begins = b"HTTP/1.1 %d " % status
        self._data = bytearray()
        self._needed = 0
        self.began = 0.0

    def send(self, message: bytes, began: float) -> None:
        self.began = began
        self._data.clear()
        self._needed = 0
        self.socket.sendall(message)

    def read(self) -> bytes | None:
        """The whole response, once it is complete."""
        data = self.socket.recv(16_384)  # Room for an answer; for much more memory would be mapped anew each time.
        if not data:
            raise LoadError("The server closed a connection.")
        self._data += data
        if not self._needed:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return None
            head = bytes(self._data[:end]).lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._needed = end + 4 + int(length or 0)
        if len(self._data) < self._needed:
            return None
        if not self._data.startswith(self._begins):
            raise LoadError(f"Not {self._begins.decode()}: {bytes(self._data[:600])!r}")
        return bytes(self._data)


def check(operation: Operation, port: int) -> float:
    """Send some requests and verify the responses. Returns the mean size of a response with its head, in bytes."""
    connection = _Connection(port, operation.status)
    places = random.Random(0).sample(range(len(operation.messages)), min(_SAMPLES, len(operation.messages)))
    length = 0
    for place in places:
        connection.send(operation.messages[place], 0.0)
        while (answer := connection.read()) is None:
            pass
        if operation.expected[place] not in answer.partition(b"\r\n\r\n")[2]:
            raise LoadError(f"{operation.name}: {operation.expected[place]!r} is not in the answer {answer[:400]!r}")
        length += len(answer)
    connection.socket.close()
    return length / len(places)


def answer_of(operation: Operation, port: int) -> bytes:
    """The body of the response to the first message."""
    connection = _Connection(port, operation.status)
    connection.send(operation.messages[0], 0.0)
    while (answer := connection.read()) is None:
        pass
    connection.socket.close()
    return answer.partition(b"\r\n\r\n")[2]


def drive(
    operation: Operation, port: int, connections: int, seconds: float, rate: float | None = None, place: int = 0
) -> Load:
    """One thread with one epoll. rate: mean requests per second, at random times independent of responses.
    place: index of the first message.

    With a rate, latency is measured from the time when a request was due, whether or not it could be sent then.
    """
    chance = random.Random(70)
    gc.collect()
    gc.freeze()  # Else going through a whole fleet for garbage stops this loop for a tenth of a second.
    epoll = select.epoll()
    idle: deque[_Connection] = deque()
    by_descriptor = {}
    for _ in range(connections):
        connection = _Connection(port, operation.status)
        epoll.register(connection.socket.fileno(), select.EPOLLIN)
        by_descriptor[connection.socket.fileno()] = connection
        idle.append(connection)
    messages = operation.messages
    waiting: deque[float] = deque()
    latencies: list[float] = []
    start = now = time.perf_counter()
    due = start
    while True:
        if rate is None:
            if now < start + seconds:
                waiting.extend([now] * (len(idle) - len(waiting)))
        else:
            while due <= now and due < start + seconds:
                waiting.append(due)
                due += chance.expovariate(rate)
        while waiting and idle:
            connection = idle.popleft()
            connection.send(messages[place % len(messages)], waiting.popleft())
            place += 1
        if now >= start + seconds and not waiting and len(idle) == connections:
            break
        if now > start + seconds + 20:
            raise LoadError(f"{operation.name}: answers did not come.")
        # epoll by itself counts in milliseconds; it can be waited for in microseconds.
        pause = min(due - time.perf_counter(), 0.5) if rate is not None and due < start + seconds else 0.5
        ready = epoll.poll(0)
        if not ready and pause > 0:
            select.select([epoll], [], [], pause)
            ready = epoll.poll(0)
        for descriptor, _ in ready:
            connection = by_descriptor[descriptor]
            if connection.read() is not None:
                latencies.append((time.perf_counter() - connection.began) * 1e3)
                idle.append(connection)
        now = time.perf_counter()
    for connection in by_descriptor.values():
        connection.socket.close()
    latencies.sort()
    shares = (latencies[min(len(latencies) - 1, int(len(latencies) * share))] for share in (0.5, 0.95, 0.99))
    return Load(len(latencies), now - start, *shares)
