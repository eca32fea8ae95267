"""Metrics that are not counted by what happens: samples of this worker, and facts about the whole pool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client.core import Metric

from ccp import __version__
from ccp.server.http.tls import Loop
from ccp.server.metrics import Metrics, snapshot
from ccp.server.pool.statistics import PoolStatistics
from ccp.server.runtime.background import PeriodicTask
from ccp.server.storage import Store
from ccp.server.storage.engine.schema_version import HEAD
from ccp.server.trust.anchors import TrustStore

_SAMPLE_INTERVAL: Final = 1.0


class WorkerMetrics:
    """Feeds the metrics of one worker."""

    def __init__(
        self,
        metrics: Metrics,
        store: Store,
        trust: TrustStore,
        statistics: PoolStatistics,
        queues: Mapping[str, Callable[[], int]],
    ) -> None:
        """queues: the length of each queue of this worker, by name."""
        self._metrics = metrics
        self._store = store
        self._trust = trust
        self._statistics = statistics
        self._queues = queues
        metrics.add_source(self._facts)

    def task(self) -> PeriodicTask:
        """Background task that samples connections, queues and the TLS certificate, so that any worker knows them."""
        return PeriodicTask("metrics", self.sample, _SAMPLE_INTERVAL, first_delay=0.0)

    async def sample(self) -> None:
        """Record the current values of this worker."""
        use = self._store.use()
        self._metrics.database_sampled(use.in_use, use.idle, use.limit)
        self._metrics.queue_sampled("database", use.waiting)
        for name, length in self._queues.items():
            self._metrics.queue_sampled(name, length())
        loop = asyncio.get_running_loop()
        if isinstance(loop, Loop) and loop.certificate is not None:
            served = loop.certificate
            self._metrics.tls_certificate_used(served.file, served.not_after.timestamp())

    def _facts(self) -> Iterator[Metric]:
        yield from snapshot.build_info(__version__, HEAD)
        yield from snapshot.anchors(
            snapshot.AnchorExpiry(role.value, anchor.certificate.fingerprint, anchor.certificate.not_after.timestamp())
            for anchor in self._trust.anchors.anchors
            for role in anchor.roles
        )
        yield from snapshot.statistics(self._statistics.contracts, self._statistics.webhooks)
