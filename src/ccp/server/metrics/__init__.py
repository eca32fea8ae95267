"""Metrics of the pool, for Prometheus. All metric names and labels are defined here.

`recorder` has what the workers count; `snapshot` has what the worker that is queried knows of the whole pool. Names
follow Prometheus' conventions: base units, `_total` for counters, `_timestamp_seconds` for times, `_info` for facts.

Labels have few values: operations, statuses, outcome codes (`code` of `ccp.errors` and `ccp.client.errors`), limits,
background tasks, external services, states, peers by the party id that they are registered under, and, up to a limit,
trust anchors, providers and webhooks by id. No label names a vehicle, a contract or a caller, or holds a URL.
"""

from ccp.server.metrics.recorder import (
    FORWARDED_PROBLEMS,
    SHARED,
    LimitCounter,
    Metrics,
    Stopwatch,
    is_shared,
    worker_ended,
)

__all__ = ["FORWARDED_PROBLEMS", "SHARED", "LimitCounter", "Metrics", "Stopwatch", "is_shared", "worker_ended"]
