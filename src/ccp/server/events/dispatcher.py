"""Dispatcher of webhook deliveries. Any number of processes may run one.

Each webhook with due deliveries has its own worker: a task, a circuit breaker and a few concurrent attempts. So a
receiver that does not answer delays no other receiver. One poll finds the due deliveries of all webhooks, every half
second and at once when this process has written an event. A webhook without due deliveries costs nothing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from ccp.errors import CCPError, Unavailable
from ccp.server.domain.subscriptions import EventKind, Webhook
from ccp.server.events.fair_queue import FairQueue
from ccp.server.events.message import encode_body
from ccp.server.events.sending import REJECTED, Attempt, WebhookSender
from ccp.server.events.subscribers import Subscribers
from ccp.server.external.circuit_breaker import MAX_RESET_TIMEOUT, RESET_TIMEOUT, CircuitBreaker
from ccp.server.external.outbound import OutboundClient
from ccp.server.metrics import Metrics
from ccp.server.runtime.background import BackgroundTasks, PeriodicTask, Supervised
from ccp.server.runtime.clock import TOLERANCE, ClockGuard
from ccp.server.runtime.loop_budget import LoopBudget
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.storage.queries import deliveries, delivery_queue, due_deliveries, outbox
from ccp.server.storage.queries.deliveries import Delivery
from ccp.server.storage.queries.delivery_queue import AttemptOutcome

if TYPE_CHECKING:
    from ccp.server.tracing.spans import Spans

_log = structlog.get_logger("ccp.server.events")

_POLL_INTERVAL: Final = 0.5
_FAN_OUT_DELAY: Final = 0.05  # Batches the events of concurrent changes: each fan-out is a transaction of its own.
_PURGE_INTERVAL: Final = 600.0
_CLOSE_TIMEOUT: Final = 2.0  # For attempts that are under way at shutdown.
_METRICS_INTERVAL: Final = 10.0
_FULL_SCAN_INTERVAL: Final = 10.0  # If more is due than `due_deliveries.due_webhooks` covers.
_IDLE_TIMEOUT: Final = 60.0  # A worker ends when nothing was due for this time.
_MAX_LEASE_DELAY: Final = 10.0  # Until the next attempt to lease deliveries, after attempts that got none.
_MAX_FAN_OUT: Final = 100  # Events that one transaction takes out of the outbox.

_SENT: Final = {
    EventKind.CREATED: EventKind.CREATED_SENT,
    EventKind.UPDATED: EventKind.UPDATED_SENT,
    EventKind.DELETED: EventKind.DELETED_SENT,
}


@dataclass(slots=True)
class WebhookWorker:
    """State of a webhook with due deliveries.

    free_slots: concurrent attempts that may still start. last_due: when a delivery was last due. due: number of due
    deliveries; None if unknown. blocked: that number when none could be leased, because each waits behind another
    delivery of its vehicle; no lease is tried until the number changes or `next_lease` has come. delay: seconds until
    then, doubled each time. Times are seconds of the monotonic clock.
    """

    webhook_id: str
    breaker: CircuitBreaker
    free_slots: int
    last_due: float
    due: int | None = None
    blocked: int | None = None
    next_lease: float = 0.0
    delay: float = 0.0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: Supervised | None = None


class Dispatcher:
    """Sends webhook deliveries in the background, from `open` until `close`."""

    def __init__(
        self,
        store: Store,
        subscribers: Subscribers,
        config: Settings,
        clock: Callable[[], datetime],
        new_events: asyncio.Event | None = None,
        metrics: Metrics | None = None,
        background: BackgroundTasks | None = None,
        guard: ClockGuard | None = None,
        budget: LoopBudget | None = None,
        has_capacity: Callable[[], bool] = lambda: True,
        spans: Spans | None = None,
    ) -> None:
        """new_events: set when the outbox has new events. guard: None for a separate one.

        budget: shared with the other outbound clients of the event loop. has_capacity: asked before deliveries start;
        False postpones them. spans: traces attempts; None for none.
        """
        self._queue = FairQueue(has_capacity)
        self._guard = guard or ClockGuard(clock, store.time)
        self._metrics = metrics or Metrics()
        self._background = background or BackgroundTasks(self._metrics.task_failed)
        self._poll_task: Supervised | None = None
        self._store = store
        self._subscribers = subscribers
        self._clock = clock
        self._slots = config.event_concurrency
        self._retries = config.event_retries
        self._retry_delay = timedelta(seconds=config.event_retry_delay)
        self._max_age = timedelta(seconds=config.event_max_age)
        self._retention = timedelta(seconds=config.event_retention)
        # Longer than an attempt with the writes before and after it, even if the database is slow.
        self._lease = timedelta(seconds=2 * config.event_timeout + 2)
        # With short retry delays, as in tests, a circuit stays open no longer than one of them.
        self._reset_timeout = min(RESET_TIMEOUT, config.event_retry_delay)
        self._max_reset_timeout = min(MAX_RESET_TIMEOUT, config.event_retry_delay)
        self._purge_interval = min(_PURGE_INTERVAL, config.event_max_age, config.event_retention or _PURGE_INTERVAL)
        # Each worker limits its own attempts. A common limit would let receivers that hang delay the others.
        self._outbound = OutboundClient(
            config.egress_allow_networks,
            max_per_owner=None,
            budget=budget,
            observe=self._metrics.service_request_ended,
            spans=spans,
        )
        self._sender = WebhookSender(store, self._outbound, clock, config.event_timeout)
        self._fan_out_size = _MAX_FAN_OUT
        self._workers: dict[str, WebhookWorker] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._new_events = new_events or asyncio.Event()
        self._last_metrics = self._last_full_scan = float("-inf")
        # Not at once: a clock that is wrong at start-up may be detected before the first purge.
        self._last_purge = time.monotonic()
        self._closing = False

    def open(self) -> None:
        """Start the background task."""
        task = PeriodicTask(
            "event_dispatch",
            self.run_once,
            _POLL_INTERVAL,
            first_delay=0.0,
            wake=self._new_events,
            wake_delay=_FAN_OUT_DELAY,
        )
        self._poll_task = self._background.add(task)

    @property
    def queued(self) -> int:
        """The number of webhooks that wait until this worker has time for their deliveries."""
        return self._queue.queued

    async def run_once(self) -> bool:
        """Fan out new events and wake the workers of webhooks with due deliveries. Returns whether there is more."""
        now = self._clock()
        more = False
        if await self._store.read(outbox.has_new_events()):
            more = await self._fan_out()
        await self._wake_due()
        if time.monotonic() - self._last_purge >= self._purge_interval:
            self._last_purge = time.monotonic()
            await self._purge()
        if time.monotonic() - self._last_metrics >= _METRICS_INTERVAL:
            self._last_metrics = time.monotonic()
            await self._reschedule_future()
            await self._stop_idle_workers()
            left = await self._store.read(deliveries.backlog())
            oldest = (now - left.oldest).total_seconds() if left.oldest is not None else 0.0
            self._metrics.events_pending(left.outbox, left.waiting, left.dead, max(0.0, oldest))
        return more

    async def _fan_out(self) -> bool:
        """Fan out a batch of events. Returns whether there may be more. Raises Unavailable.

        An event may have many webhooks, and the database may be far away. A batch that exceeds the time limit of a
        transaction would fail again each time, so the next one is smaller.
        """
        size = self._fan_out_size
        try:
            taken = await self._store.write(outbox.fan_out(self._clock(), size))
        except Unavailable:
            self._fan_out_size = max(1, size // 4)
            raise
        self._fan_out_size = min(2 * size, _MAX_FAN_OUT)
        return taken == size

    async def _wake_due(self) -> None:
        """Wake the workers of webhooks with due deliveries."""
        due = await self._store.read(due_deliveries.due_webhooks(self._clock()))
        for webhook_id, count in due.webhooks.items():
            self._wake(webhook_id, count)
        if due.complete or time.monotonic() - self._last_full_scan < _FULL_SCAN_INTERVAL:
            return
        self._last_full_scan = time.monotonic()
        after: str | None = ""
        while after is not None:
            found, after = await self._store.read(due_deliveries.due_webhooks_page(self._clock(), after))
            for webhook_id in found - due.webhooks.keys():
                self._wake(webhook_id, None)
            await asyncio.sleep(0)

    def _wake(self, webhook_id: str, due: int | None) -> None:
        """due: number of due deliveries; None if unknown."""
        if self._subscribers.active(webhook_id) is None:
            return  # Disabled, or added within the last second.
        worker, now = self._worker(webhook_id), time.monotonic()
        worker.last_due, worker.due = now, due
        is_blocked = due is not None and due == worker.blocked and now < worker.next_lease
        if not (is_blocked or worker.breaker.is_open):
            worker.wake.set()

    async def _stop_idle_workers(self) -> None:
        """Stop workers without due deliveries, and those of webhooks that are no longer active."""
        now = time.monotonic()
        for worker in list(self._workers.values()):
            # The state of an open circuit is kept.
            idle = now - worker.last_due > _IDLE_TIMEOUT and worker.breaker.is_closed
            if (
                (idle or self._subscribers.active(worker.webhook_id) is None)
                and worker.free_slots == self._slots
                and worker.task is not None
            ):
                del self._workers[worker.webhook_id]
                await worker.task.stop()
                self._queue.remove(worker.webhook_id)

    async def _reschedule_future(self) -> None:
        """Make deliveries due now whose next attempt is too far in the future, because a clock was ahead."""
        try:
            now = await self._guard.checked()
        except Unavailable:
            return  # The guard has logged it.
        horizon = now + max(self._lease, self._retry_delay) + TOLERANCE
        while keys := await self._store.read(delivery_queue.scheduled_beyond(horizon)):
            rescheduled = await self._store.write(delivery_queue.reschedule(keys, horizon, now))
            _log.warning("future deliveries rescheduled", events=rescheduled)
            self._new_events.set()

    async def _purge(self) -> None:
        """Give up deliveries that are too old, and remove those whose retention time is over."""
        try:
            now = await self._guard.checked()
        except Unavailable:
            return  # The guard has logged it.
        while expired := await self._store.write(
            delivery_queue.expire(now - self._max_age, now, "It waited for too long.")
        ):
            _log.warning("events expired", events=expired)
        while await self._store.write(deliveries.purge(now - self._retention)):
            pass

    def _worker(self, webhook_id: str) -> WebhookWorker:
        worker = self._workers.get(webhook_id)
        if worker is None:
            breaker = CircuitBreaker(time.monotonic, self._reset_timeout, self._max_reset_timeout)
            worker = WebhookWorker(webhook_id, breaker, self._slots, time.monotonic())
            # Not interruptible: deliveries leased at shutdown are still sent; no other process could send them until
            # the lease expires.
            task = PeriodicTask(
                "event_claim",
                partial(self._start_attempts, worker),
                math.inf,
                wake=worker.wake,
                max_retry_delay=5.0,
                interruptible=False,
                context={"webhook": webhook_id},
            )
            worker.task = self._background.add(task)
            self._workers[webhook_id] = worker
        return worker

    async def _start_attempts(self, worker: WebhookWorker) -> bool:
        """Lease deliveries and start an attempt for each, up to the free slots. Returns whether there may be more."""
        webhook = self._subscribers.active(worker.webhook_id)
        if webhook is None or self._closing or not self._queue.try_enter(worker.webhook_id, worker.wake):
            return False
        count = 0
        while count < worker.free_slots and worker.breaker.allow():
            count += 1
        if not count:
            return False
        leased: list[Delivery] = []
        try:
            now = self._clock()
            leased = await self._store.write(delivery_queue.lease(worker.webhook_id, now, now + self._lease, count))
        finally:
            if not leased:
                worker.breaker.release()
        if leased:
            worker.blocked, worker.delay = None, 0.0
        else:
            worker.blocked, worker.delay = worker.due, min(max(2 * worker.delay, _POLL_INTERVAL), _MAX_LEASE_DELAY)
            worker.next_lease = time.monotonic() + worker.delay
        worker.free_slots -= len(leased)
        for delivery in leased:
            task = self._background.spawn(
                "event_delivery", self._send(worker, webhook, delivery), webhook=webhook.id, event_id=delivery.event_id
            )
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        return bool(leased)

    async def _send(self, worker: WebhookWorker, webhook: Webhook, delivery: Delivery) -> None:
        """Make one attempt and store its outcome."""
        try:
            attempt = await self._attempt(webhook, delivery)
            outcome = self._outcome(attempt, delivery)
            self._metrics.event_attempted(outcome.value.replace(" ", "_"))
            if outcome in (AttemptOutcome.DELIVERED, AttemptOutcome.REJECTED):
                worker.breaker.record_success()
            else:
                worker.breaker.record_failure()
            await self._store_outcome(delivery, outcome, attempt.status, attempt.error)
        except asyncio.CancelledError:
            await self._release_lease(delivery)
            raise
        finally:  # After an error the lease expires, and the delivery is attempted again.
            worker.free_slots += 1
            worker.wake.set()

    async def _attempt(self, webhook: Webhook, delivery: Delivery) -> Attempt:
        """Send a delivery."""
        attempt = await self._sender.send(webhook, encode_body(delivery))
        _log.info(
            "event delivery attempted",
            webhook=webhook.id,
            party=webhook.client_id,
            event_id=delivery.event_id,
            kind=delivery.kind,
            attempt=delivery.attempts,
            status=attempt.status,
            reason=attempt.error,
            previous_secret=attempt.previous_secret,
            ms=attempt.ms,
        )
        return attempt

    def _outcome(self, attempt: Attempt, delivery: Delivery) -> AttemptOutcome:
        if attempt.accepted:
            return AttemptOutcome.DELIVERED
        if attempt.status in REJECTED:
            return AttemptOutcome.REJECTED
        return AttemptOutcome.FAILED if delivery.attempts <= self._retries else AttemptOutcome.GIVEN_UP

    async def _store_outcome(
        self, delivery: Delivery, outcome: AttemptOutcome, status: int | None, error: str | None
    ) -> None:
        """Store the outcome, with up to three tries, and an event for the contract's provider if it wants one."""
        notify = self._provider_event(delivery, outcome)
        if notify is not None and not self._subscribers.wants(notify, delivery.emaid):
            notify = None
        for last in (False, False, True):
            now = self._clock()
            change = delivery_queue.ack(
                delivery, outcome, now, status=status, error=error, retry_at=now + self._retry_delay, notify=notify
            )
            try:
                had_lease = await self._store.write(change)
            except CCPError as exc:
                _log.warning("delivery outcome not stored", event_id=delivery.event_id, reason=str(exc))
                if last:
                    return
                await asyncio.sleep(0.5)
            else:
                if not had_lease:
                    _log.warning("delivery lease lost", event_id=delivery.event_id)
                elif notify is not None:
                    self._new_events.set()
                return

    def _provider_event(self, delivery: Delivery, outcome: AttemptOutcome) -> EventKind | None:
        """The event for the contract's provider about an attempt to notify the OEM; None if there is none."""
        sent = _SENT.get(EventKind(delivery.kind)) if delivery.kind in _SENT else None
        if sent is None:
            return None
        is_first_failure = outcome is AttemptOutcome.FAILED and delivery.last_error is None
        return {AttemptOutcome.DELIVERED: sent, AttemptOutcome.REJECTED: EventKind.REJECTED}.get(
            outcome, EventKind.QUEUED if is_first_failure else None
        )

    async def _release_lease(self, delivery: Delivery) -> None:
        try:
            await self._store.write(delivery_queue.nack(delivery, self._clock()))
        except CCPError as exc:
            _log.warning("delivery lease not released", event_id=delivery.event_id, reason=str(exc))

    async def close(self) -> None:
        """Wait for attempts under way, for at most two seconds each; release the leases of the others."""
        self._closing = True
        self._queue.close()
        if self._poll_task is not None:
            await self._poll_task.stop()
        await asyncio.gather(
            *(worker.task.stop(_CLOSE_TIMEOUT) for worker in self._workers.values() if worker.task is not None)
        )
        if self._sending:
            await asyncio.wait(self._sending, timeout=_CLOSE_TIMEOUT)
        unfinished = list(self._sending)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        await self._outbound.close()
