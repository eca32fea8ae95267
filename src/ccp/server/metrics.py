"""What the pool counts of itself, for Prometheus: every name and label that operators see is here.

Labels have few values: operations, statuses, outcome codes (`code` of `ccp.errors` and `ccp.client.errors`), limits,
background tasks, and peers by the party id that they are registered under. None names a vehicle, a contract or a
caller.

With one worker the numbers are in its memory. With several each writes them to files of its own in a folder that they
share (the library's multi-process mode, chosen by `SHARED` before the library is imported), and whichever worker is
asked answers for all. `ccp serve` makes the folder and removes it.
"""

from __future__ import annotations

import os
import time
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

SHARED: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that names the folder; without it there is one worker."""

# A delivery takes some milliseconds, and is worth nothing after the 4.5 seconds that a charging station waits.
_REQUEST_SECONDS: Final = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 4.5, 10.0)
_LOOP_LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_PEER_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0)


class Limited(Protocol):
    """Told of each request or connection that a limit turned away, by the limit's name."""

    def __call__(self, limit: str) -> None: ...


class Stopwatch(Protocol):
    """Counts what is over, with its outcome. Returns the seconds since the start."""

    def __call__(self, outcome: str) -> float: ...


class Metrics:
    """The numbers of one worker, and the way to show those of all."""

    def __init__(self) -> None:
        # Else every counter comes with the time of its making, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "ccp_requests", "Requests that were answered.", ("operation", "status", "outcome"), registry=registry
        )
        self._request_seconds = Histogram(
            "ccp_request_seconds",
            "From a request's arrival to the end of its answer.",
            ("operation",),
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        self._limited = Counter(
            "ccp_limited", "Requests and connections that a limit turned away.", ("limit",), registry=registry
        )
        self._shed = Counter(
            "ccp_requests_shed",
            "Requests that were answered 503 before any work, or dropped.",
            ("class", "reason"),
            registry=registry,
        )
        self._in_flight = Gauge(
            "ccp_requests_in_flight",
            "Requests that were started and are not answered.",
            ("class",),
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._waiting = Gauge(
            "ccp_requests_waiting",
            "Requests that wait to be started.",
            ("class",),
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._queue_delay = Gauge(
            "ccp_request_queue_delay_seconds",
            "The longest that a request of the last half second waited to be started.",
            ("class",),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._peer_requests = Counter(
            "ccp_peer_requests", "Requests to other pools.", ("peer", "operation", "outcome"), registry=registry
        )
        self._peer_seconds = Histogram(
            "ccp_peer_request_seconds",
            "Until another pool had answered, or was given up.",
            ("peer",),
            buckets=_PEER_SECONDS,
            registry=registry,
        )
        self._broadcasts = Counter(
            "ccp_broadcasts",
            "Requests of vehicles that could be asked of other pools.",
            ("outcome",),
            registry=registry,
        )
        self._peer_resting = Gauge(
            "ccp_peer_resting",
            "1 while another pool is left alone because it failed again and again.",
            ("peer",),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._contested = Counter(
            "ccp_contested_vehicles",
            "Contracts that a second provider published for a vehicle whose default its manufacturer has not chosen.",
            registry=registry,
        )
        self._event_attempts = Counter(
            "ccp_event_attempts", "Attempts to tell a partner of an event.", ("outcome",), registry=registry
        )
        self._events = Gauge(
            "ccp_events",
            "Events that are not delivered, by what they wait for.",
            ("state",),
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self._events_oldest = Gauge(
            "ccp_events_oldest_seconds",
            "How long the oldest event has waited for a partner to take it.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self._task_failures = Counter(
            "ccp_task_failures", "Rounds of background tasks that failed.", ("task",), registry=registry
        )
        self._loop_lag = Histogram(
            "ccp_loop_lag_seconds",
            "By how much the event loop ran a probe too late; one probe every 50 ms.",
            buckets=_LOOP_LAG_SECONDS,
            registry=registry,
        )
        self._loop_lag_max = Gauge(
            "ccp_loop_lag_recent_max_seconds",
            "The largest lag of an event loop lately, halved with every second since.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        # Finding the numbers of some labels takes the library longer than adding to them.
        self._found: dict[tuple[str | None, int, str], tuple[Counter, Histogram]] = {}

    def request(self, operation: str | None, status: int, outcome: str, seconds: float) -> None:
        """A request that was answered. operation: None where none was recognised. status: 0 where nobody waited."""
        found = self._found.get((operation, status, outcome))
        if found is None:
            name = operation or "none"
            found = self._requests.labels(name, str(status), outcome), self._request_seconds.labels(name)
            self._found[operation, status, outcome] = found
        found[0].inc()
        found[1].observe(seconds)

    def limited(self, limit: str) -> None:
        self._limited.labels(limit).inc()

    def requests_shed(self, lane: str, reason: str, count: int) -> None:
        self._shed.labels(lane, reason).inc(count)

    def requests_admitted(self, lane: str, in_flight: int, waiting: int, delay: float) -> None:
        """What is under way and waits now, by class, and the longest that one waited lately, in seconds."""
        self._in_flight.labels(lane).set(in_flight)
        self._waiting.labels(lane).set(waiting)
        self._queue_delay.labels(lane).set(delay)

    def peer_asked(self, peer: str, operation: str, outcome: str, seconds: float) -> None:
        self._peer_requests.labels(peer, operation, outcome).inc()
        self._peer_seconds.labels(peer).observe(seconds)

    def stopwatch(self, peer: str, operation: str) -> Stopwatch:
        """Starts to measure a request to another pool. Call the result with the outcome in the end."""
        began = time.monotonic()

        def over(outcome: str) -> float:
            seconds = time.monotonic() - began
            self.peer_asked(peer, operation, outcome, seconds)
            return seconds

        return over

    def broadcast(self, outcome: str) -> None:
        self._broadcasts.labels(outcome).inc()

    def peer_resting(self, peer: str, resting: bool) -> None:
        self._peer_resting.labels(peer).set(resting)

    def vehicle_contested(self) -> None:
        self._contested.inc()

    def event_tried(self, outcome: str) -> None:
        self._event_attempts.labels(outcome).inc()

    def events_left(self, outbox: int, waiting: int, dead: int, oldest_seconds: float) -> None:
        """What there is in the database. Whichever process looked last is believed."""
        for state, count in (("outbox", outbox), ("waiting", waiting), ("dead", dead)):
            self._events.labels(state).set(count)
        self._events_oldest.set(oldest_seconds)

    def loop_lagged(self, lag: float, recent_max: float) -> None:
        """A probe of the event loop. Seconds."""
        self._loop_lag.observe(lag)
        self._loop_lag_max.set(recent_max)

    def task_failed(self, task: str) -> None:
        self._task_failures.labels(task).inc()

    def shown(self, accept: str) -> tuple[bytes, str]:
        """The numbers of all workers and their media type: OpenMetrics if that is accepted, else text format 0.0.4."""
        registry: Any = self._registry
        if SHARED in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        encode, media_type = choose_encoder(accept)
        return encode(registry), media_type


def are_shared() -> bool:
    """Whether this process, and those forked from it, count in files: whether SHARED was there at the import."""
    return values.ValueClass is not values.MutexValue


def worker_ended(pid: int) -> None:
    """Forget what was so while a worker lived. What it counted was, and stays."""
    if SHARED in os.environ:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
