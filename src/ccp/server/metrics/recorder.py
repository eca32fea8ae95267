"""What the workers count and measure.

With one worker the values are in memory. With several, each worker writes its values to files in a shared folder (the
library's multi-process mode, which `SHARED` selects before the library is imported), and the worker that is queried
reports the values of all. `ccp serve` creates the folder and removes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, values
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ccp.errors.codes import ErrorCode
from ccp.server.metrics import worker_files
from ccp.server.metrics.last_calls import PEER, SERVICE, LastCalls
from ccp.server.request_counts import Dialect, RequestCounts

SHARED: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that names the folder; it is not set for a single worker."""

FORWARDED_PROBLEMS: Final = "ccp_forwarded_header_problems"
"""Counter of requests whose X-Forwarded-For is not as `trusted_proxies` expects; diagnosis reads it."""

# A delivery takes some milliseconds, and is useless after the 4.5 seconds that a charging station waits.
_REQUEST_SECONDS: Final = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 4.5, 10.0)
_LOOP_LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SERVICE_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PEER_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0)


class LimitCounter(Protocol):
    """Called with the name of a limit for each request or connection that it refuses."""

    def __call__(self, limit: str) -> None: ...


class Stopwatch(Protocol):
    """Records the end of an operation with its outcome. Returns the seconds since the start."""

    def __call__(self, outcome: str) -> float: ...


class Metrics:
    """The metrics of one worker, and the exposition of those of all workers."""

    def __init__(self) -> None:
        # Otherwise the library adds the creation time of every counter.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "ccp_requests", "Requests answered.", ("operation", "status", "outcome"), registry=registry
        )
        self._request_seconds = Histogram(
            "ccp_request_seconds",
            "Time from the arrival of a request to the end of its response.",
            ("operation",),
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        self._limited = Counter(
            "ccp_limited", "Requests and connections refused by a limit.", ("limit",), registry=registry
        )
        self._forwarded_problems = Counter(
            FORWARDED_PROBLEMS,
            "Requests with X-Forwarded-For from an untrusted address; first request of a trusted proxy without it.",
            ("problem",),
            registry=registry,
        )
        self._shed = Counter(
            "ccp_requests_shed",
            "Requests answered with 503 before any work, or dropped.",
            ("class", "reason"),
            registry=registry,
        )
        self._in_flight = Gauge(
            "ccp_requests_in_flight",
            "Requests in progress.",
            ("class",),
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._waiting = Gauge(
            "ccp_requests_waiting",
            "Requests in the queue.",
            ("class",),
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._queue_delay = Gauge(
            "ccp_request_queue_delay_seconds",
            "Longest queueing time of the last half second.",
            ("class",),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._peer_requests = Counter(
            "ccp_peer_requests", "Requests to peers.", ("peer", "operation", "outcome"), registry=registry
        )
        self._peer_seconds = Histogram(
            "ccp_peer_request_seconds",
            "Time until a peer answered or the request was abandoned.",
            ("peer",),
            buckets=_PEER_SECONDS,
            registry=registry,
        )
        self._broadcasts = Counter(
            "ccp_broadcasts",
            "Requests of vehicles that were eligible for a broadcast to peers.",
            ("outcome",),
            registry=registry,
        )
        self._peer_circuit_open = Gauge(
            "ccp_peer_circuit_open",
            "1 while the circuit to a peer is open after consecutive failures.",
            ("peer",),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._contested = Counter(
            "ccp_contested_vehicles",
            "Contracts published by a second provider for a vehicle without a default chosen by its manufacturer.",
            registry=registry,
        )
        self._event_attempts = Counter(
            "ccp_event_attempts", "Delivery attempts of events.", ("outcome",), registry=registry
        )
        self._events = Gauge(
            "ccp_events",
            "Undelivered events by state.",
            ("state",),
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self._events_oldest = Gauge(
            "ccp_events_oldest_seconds",
            "Age of the oldest undelivered event.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self._refusals_dropped = Counter(
            "ccp_refusals_dropped", "Refused deliveries without a record.", ("reason",), registry=registry
        )
        self._task_failures = Counter(
            "ccp_task_failures", "Failed rounds of background tasks.", ("task",), registry=registry
        )
        self._loop_lag = Histogram(
            "ccp_loop_lag_seconds",
            "Delay of the event loop in running a probe; one probe every 50 ms.",
            buckets=_LOOP_LAG_SECONDS,
            registry=registry,
        )
        self._loop_lag_max = Gauge(
            "ccp_loop_lag_recent_max_seconds",
            "Recent maximum of the lag of an event loop, halved every second.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._service_requests = Counter(
            "ccp_service_requests", "Requests to external services.", ("service", "outcome"), registry=registry
        )
        self._service_seconds = Histogram(
            "ccp_service_request_seconds",
            "Time until an external service answered or the request was abandoned.",
            ("service",),
            buckets=_SERVICE_SECONDS,
            registry=registry,
        )
        self._connections = Gauge(
            "ccp_database_connections",
            "Connections to the database server, or with SQLite the threads of the database.",
            ("state",),
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._connections_max = Gauge(
            "ccp_database_connections_max",
            "Upper limit of connections to the database.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._queue_length = Gauge(
            "ccp_queue_length", "Entries of a queue.", ("queue",), multiprocess_mode="livesum", registry=registry
        )
        self._tls_not_after = Gauge(
            "ccp_tls_certificate_not_after_timestamp_seconds",
            "End of validity of the TLS certificate in use.",
            ("file",),
            multiprocess_mode="livemin",
            registry=registry,
        )
        self._sources: list[Callable[[], Iterable[Metric]]] = []
        self._audit_rows = Counter(
            "ccp_audit_stream_rows", "Rows of the audit trail that the receiver has confirmed.", registry=registry
        )
        self._audit_failures = Counter(
            "ccp_audit_stream_failures", "Failed attempts to send rows of the audit trail.", registry=registry
        )
        self._audit_lag_rows = Gauge(
            "ccp_audit_stream_lag_rows",
            "Rows of the audit trail that the receiver does not have yet.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self._audit_lag_seconds = Gauge(
            "ccp_audit_stream_lag_seconds",
            "Age of the oldest row of the audit trail that the receiver does not have yet.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        # The library takes longer to look up labels than to update their values.
        self.counts = RequestCounts()
        self.last_calls = LastCalls()
        self._by_labels: dict[tuple[str | None, int, str], tuple[Counter, Histogram]] = {}

    def request(self, operation: str | None, status: int, outcome: str, seconds: float) -> None:
        """Record an answered request. operation: None if unknown. status: 0 if the client was gone."""
        found = self._by_labels.get((operation, status, outcome))
        if found is None:
            name = operation or "none"
            found = self._requests.labels(name, str(status), outcome), self._request_seconds.labels(name)
            self._by_labels[operation, status, outcome] = found
        found[0].inc()
        found[1].observe(seconds)

    def limited(self, limit: str) -> None:
        """Count a request or connection that a limit refused."""
        self._limited.labels(limit).inc()

    def forwarded_problem(self, problem: str) -> None:
        """Count a request: "untrusted" for a header from an unknown proxy, "missing" for a known one without it."""
        self._forwarded_problems.labels(problem).inc()

    def requests_shed(self, lane: str, reason: str, count: int) -> None:
        """Count requests of a class that were shed."""
        if reason != "client_gone":  # Nothing was answered.
            self.counts.add(Dialect.OTHER, None, ErrorCode.OVERLOADED, count)
        self._shed.labels(lane, reason).inc(count)

    def refusal_dropped(self, reason: str) -> None:
        """Count a refused delivery that was not recorded: "overload", "caller", "queue" or "rejected"."""
        self._refusals_dropped.labels(reason).inc()

    def requests_admitted(self, lane: str, in_flight: int, waiting: int, delay: float) -> None:
        """Record the requests of a class in progress and in the queue, and their recent maximum delay, seconds."""
        self._in_flight.labels(lane).set(in_flight)
        self._waiting.labels(lane).set(waiting)
        self._queue_delay.labels(lane).set(delay)

    def peer_request_ended(self, peer: str, operation: str, outcome: str, duration: float) -> None:
        """Record a request to a peer. duration: seconds."""
        self._peer_requests.labels(peer, operation, outcome).inc()
        self._peer_seconds.labels(peer).observe(duration)
        self.last_calls.record(PEER, peer, outcome, duration)

    def stopwatch(self, peer: str, operation: str) -> Stopwatch:
        """Start to measure a request to a peer. Call the result with the outcome at its end."""
        began = time.monotonic()

        def ended(outcome: str) -> float:
            duration = time.monotonic() - began
            self.peer_request_ended(peer, operation, outcome, duration)
            return duration

        return ended

    def broadcast(self, outcome: str) -> None:
        """Count a request that was eligible for a broadcast."""
        self._broadcasts.labels(outcome).inc()

    def peer_circuit_changed(self, peer: str, is_open: bool) -> None:
        """Record whether the circuit to a peer is open."""
        self._peer_circuit_open.labels(peer).set(is_open)

    def vehicle_contested(self) -> None:
        """Count a publication that makes a vehicle contested."""
        self._contested.inc()

    def event_attempted(self, outcome: str) -> None:
        """Count a delivery attempt of an event."""
        self._event_attempts.labels(outcome).inc()

    def events_pending(self, outbox: int, waiting: int, dead: int, oldest_seconds: float) -> None:
        """Record the undelivered events in the database. The most recent report of all processes counts."""
        for state, count in (("outbox", outbox), ("waiting", waiting), ("dead", dead)):
            self._events.labels(state).set(count)
        self._events_oldest.set(oldest_seconds)

    def audit_streamed(self, rows: int, *, failed: bool) -> None:
        """Count rows of the audit trail that the receiver has, or a failed attempt."""
        self._audit_rows.inc(rows)
        if failed:
            self._audit_failures.inc()

    def audit_stream_behind(self, rows: int, seconds: float) -> None:
        """Record how far the receiver of the audit trail is behind. The most recent report of all workers counts."""
        self._audit_lag_rows.set(rows)
        self._audit_lag_seconds.set(seconds)

    def loop_probed(self, lag: float, recent_max: float) -> None:
        """Record a probe of the event loop, seconds."""
        self._loop_lag.observe(lag)
        self._loop_lag_max.set(recent_max)

    def task_failed(self, task: str) -> None:
        """Count a failed round of a background task."""
        self._task_failures.labels(task).inc()

    def service_request_ended(self, service: str, outcome: str, duration: float) -> None:
        """Record a request to an external service. duration: seconds."""
        self._service_requests.labels(service, outcome).inc()
        self._service_seconds.labels(service).observe(duration)
        self.last_calls.record(SERVICE, service, outcome, duration)

    def database_sampled(self, in_use: int, idle: int, limit: int) -> None:
        """Record the database connections of this worker."""
        self._connections.labels("in_use").set(in_use)
        self._connections.labels("idle").set(idle)
        self._connections_max.set(limit)

    def queue_sampled(self, queue: str, length: int) -> None:
        """Record the length of a queue of this worker."""
        self._queue_length.labels(queue).set(length)

    def tls_certificate_used(self, file: str, not_after: float) -> None:
        """Record the certificate that this worker presents.

        file: its name, without the folder. not_after: seconds since 1970.
        """
        self._tls_not_after.labels(file).set(not_after)

    def add_source(self, source: Callable[[], Iterable[Metric]]) -> None:
        """Add metrics that are built when they are queried, see `ccp.server.metrics.snapshot`."""
        self._sources.append(source)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The metrics of all workers and their media type: OpenMetrics if accepted, else text format 0.0.4.

        accept: value of the Accept header.
        """
        registry = CollectorRegistry()
        registry.register(_Sources(self._sources))
        encode, media_type = choose_encoder(accept)
        if SHARED not in os.environ:
            registry.register(self._registry)
            return encode(registry), media_type
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        with worker_files.reading(Path(os.environ[SHARED])):
            return encode(registry), media_type


class _Sources(Collector):
    def __init__(self, sources: Iterable[Callable[[], Iterable[Metric]]]) -> None:
        self._sources = sources

    def collect(self) -> Iterable[Metric]:
        for source in self._sources:
            yield from source()


def is_shared() -> bool:
    """Whether this process and its forks write metrics to files: whether SHARED was set at the import."""
    return values.ValueClass is not values.MutexValue


def worker_ended(pid: int) -> None:
    """Remove the gauges of a worker that has ended. Its counters stay, see `ccp.server.metrics.worker_files`."""
    if SHARED in os.environ:
        worker_files.worker_ended(Path(os.environ[SHARED]), pid)
