"""Statistics of the pool: counted by one process at a time, kept in the database, read by every worker.

    statistics = PoolStatistics(store, policy, interval=300.0)
    background.add(statistics.task())
    statistics.contracts                       # the newest counts, None before the first ones
    await statistics.forecast(now)             # contracts that end soon, counted now

A scrape of the metrics costs no query. Counting reads whole indexes, at most once in an interval among all workers of
all machines; webhooks are counted more often, because their cost is that of the backlog.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from ccp.server.domain.statistics import (
    EXPIRY_DAYS,
    ContractStatistics,
    ExpiryForecast,
    WebhookStatistics,
    is_due,
)
from ccp.server.runtime.background import PeriodicTask
from ccp.server.storage import Store
from ccp.server.storage.queries import statistics as queries
from ccp.server.storage.queries.statistics import Stored
from ccp.x509.revocation_policy import RevocationPolicy

_log = structlog.get_logger("ccp.server.pool.statistics")

CONTRACTS: Final = "contracts"
WEBHOOKS: Final = "webhooks"
_WEBHOOK_INTERVAL: Final = 30.0
_POLL_INTERVAL: Final = 15.0
_JITTER: Final = 0.25  # Keeps workers apart.
_LEASE: Final = timedelta(minutes=5)
_READERS: Final[Mapping[str, Callable[[datetime, Any], ContractStatistics | WebhookStatistics]]] = {
    CONTRACTS: ContractStatistics.from_json,
    WEBHOOKS: WebhookStatistics.from_json,
}


class PoolStatistics:
    """The newest statistics. One for each worker."""

    def __init__(
        self, store: Store, policy: RevocationPolicy, clock: Callable[[], Awaitable[datetime]], interval: float
    ) -> None:
        """clock: raises Unavailable if the time is implausible. interval: seconds between two counts of contracts."""
        self._store = store
        self._policy = policy
        self._clock = clock
        self._poll_interval = min(_POLL_INTERVAL, interval)
        self._intervals: Final = {
            CONTRACTS: timedelta(seconds=interval),
            WEBHOOKS: timedelta(seconds=min(_WEBHOOK_INTERVAL, interval)),
        }
        self.contracts: ContractStatistics | None = None
        self.webhooks: WebhookStatistics | None = None

    def task(self) -> PeriodicTask:
        """Background task that reads the statistics, and counts what is due."""
        return PeriodicTask("statistics", self.run, self._poll_interval, jitter=_JITTER, first_delay=0.0)

    async def run(self) -> None:
        """Read the statistics, and count what is due unless another process does. Raises Unavailable."""
        now = await self._clock()
        stored = {row.name: row for row in await self._store.read(queries.load_all())}
        self._show(stored.values())
        for name, interval in self._intervals.items():
            row = stored.get(name)
            counted_at = None if row is None else row.counted_at
            if not is_due(counted_at, interval, now):
                continue
            if await self._store.write(queries.claim(name, counted_at, now, _LEASE)):
                counted = await (self._count_contracts(now) if name == CONTRACTS else self._count_webhooks(now))
                await self._store.write(queries.store(name, now, counted.to_json()))
                self._take(counted)

    async def forecast(self, now: datetime, days: tuple[int, ...] = EXPIRY_DAYS) -> ExpiryForecast:
        """Count the contracts that end soon, by provider. days: ascending. Raises Unavailable."""
        return await self._store.read(queries.expiry_forecast(now, days))

    async def _count_contracts(self, now: datetime) -> ContractStatistics:
        began = time.perf_counter()
        expiry = await self.forecast(now)
        unexpired = await self._store.read(queries.unexpired_contracts(now))
        contracts = queries.by_state(
            await self._store.read(queries.all_contracts()),
            unexpired,
            await self._store.read(queries.revoked_contracts(now)),
            await self._store.read(queries.contracts_without_evidence(self._policy, now)),
        )
        vehicles = await self._store.read(queries.vehicles_by_state())
        evidence = await self._store.read(queries.evidence_counts(now))
        return ContractStatistics(now, time.perf_counter() - began, contracts, vehicles, evidence, expiry)

    async def _count_webhooks(self, now: datetime) -> WebhookStatistics:
        began = time.perf_counter()
        found = tuple(await self._store.read(queries.longest_backlogs()))
        return WebhookStatistics(now, time.perf_counter() - began, found)

    def _show(self, rows: Iterable[Stored]) -> None:
        """Take over what other processes have counted."""
        for row in rows:
            read = _READERS.get(row.name)
            if read is None or row.counted_at is None:
                continue
            try:
                self._take(read(row.counted_at, row.payload))
            except (KeyError, TypeError, ValueError) as exc:
                # Another release wrote it; this release counts again when it is due.
                _log.info("statistics not readable", name=row.name, reason=type(exc).__name__)

    def _take(self, counted: ContractStatistics | WebhookStatistics) -> None:
        if isinstance(counted, ContractStatistics):
            self.contracts = counted
        else:
            self.webhooks = counted
