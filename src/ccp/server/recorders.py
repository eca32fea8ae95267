"""What a worker records of its requests and of the pool: metrics, statistics, refusals, counts, the audit stream.

Requests only add to memory; background tasks write and sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from ccp.server.audit.refusals import AccessDenialRecorder
from ccp.server.audit.refused_deliveries import RefusedDeliveries
from ccp.server.audit.request_counts import RequestCountWriter
from ccp.server.audit.stream import AuditStream
from ccp.server.audit.stream_receivers import receiver_of
from ccp.server.external.outbound import OutboundClient
from ccp.server.http.worker_metrics import WorkerMetrics
from ccp.server.metrics import Metrics
from ccp.server.pool.statistics import PoolStatistics
from ccp.server.runtime.background import BackgroundTasks
from ccp.server.runtime.clock import Clock, ClockGuard
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.trust.anchors import TrustStore
from ccp.x509.revocation_policy import RevocationPolicy


@dataclass(frozen=True, slots=True)
class Recorders:
    """The recorders of one worker.

    refusals: of access, for the audit trail. refused_deliveries: with their reasons. counts: of requests by hour.
    audit_stream: None without a receiver.
    """

    refusals: AccessDenialRecorder
    refused_deliveries: RefusedDeliveries
    counts: RequestCountWriter
    statistics: PoolStatistics
    worker_metrics: WorkerMetrics
    audit_stream: AuditStream | None

    @classmethod
    def build(
        cls,
        config: Settings,
        store: Store,
        trust: TrustStore,
        rules: RevocationPolicy,
        outbound: OutboundClient,
        metrics: Metrics,
        clock: Clock,
        guard: ClockGuard,
        *,
        queues: Mapping[str, Callable[[], int]],
        overloaded: Callable[[], bool],
    ) -> Recorders:
        """Build them. queues: the length of each queue of the worker, by name. overloaded: whether the worker is."""
        refusals = AccessDenialRecorder(store)
        statistics = PoolStatistics(store, rules, guard.checked, config.statistics_interval)
        all_queues = {**queues, "refused_access": lambda: refusals.queued}
        stream = None
        if config.audit_stream is not None:
            stream = AuditStream(store, receiver_of(config, outbound), config.audit_stream, clock, metrics)
        return cls(
            refusals,
            RefusedDeliveries(
                store,
                clock,
                guard.checked,
                retention=timedelta(seconds=config.refusal_retention),
                keep_requests=config.keep_refused_requests,
                dropped=metrics.refusal_dropped,
                overloaded=overloaded,
            ),
            RequestCountWriter(store, metrics.counts, clock, guard.checked),
            statistics,
            WorkerMetrics(metrics, store, trust, statistics, all_queues),
            stream,
        )

    def open(self, background: BackgroundTasks) -> None:
        """Start their tasks."""
        background.add(self.worker_metrics.task())
        background.add(self.statistics.task())
        self.refusals.open(background)
        self.refused_deliveries.open(background)
        self.counts.open(background)
        if self.audit_stream is not None:
            background.add(self.audit_stream.task())

    async def flush(self) -> None:
        """Stop writing, and write what waits. Call it before the other tasks are closed."""
        await self.refusals.close()
        await self.refused_deliveries.close()
        await self.counts.close()

    async def close(self) -> None:
        """Release the receiver of the audit stream. Call it after the tasks are closed."""
        if self.audit_stream is not None:
            await self.audit_stream.close()
