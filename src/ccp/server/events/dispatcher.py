"""Dispatcher of webhook deliveries. Any number of processes may run one.

Each webhook with due deliveries has a task, a circuit breaker and a few concurrent attempts of its own, so a receiver
that does not answer delays no other one. One poll for all webhooks looks for due deliveries every half second, and at
once when this process has written an event. A webhook without due deliveries costs nothing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog

from ccp.errors import CCPError, Unavailable
from ccp.server.domain.subscriptions import EventKind, Webhook
from ccp.server.events.fair_queue import FairQueue
from ccp.server.events.message import body_of, headers_of
from ccp.server.events.subscribers import Subscribers
from ccp.server.external.circuit_breaker import MAX_RESET_TIMEOUT, RESET_TIMEOUT, CircuitBreaker
from ccp.server.external.outbound import OutboundClient, OutboundError, host_of
from ccp.server.metrics import Metrics
from ccp.server.runtime.background import BackgroundTasks, PeriodicTask, Supervised
from ccp.server.runtime.clock import TOLERANCE, ClockGuard
from ccp.server.runtime.loop_budget import LoopBudget
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.storage.queries import deliveries, delivery_queue, due_deliveries, outbox
from ccp.server.storage.queries.deliveries import Delivery
from ccp.server.storage.queries.delivery_queue import AttemptOutcome

_log = structlog.get_logger("ccp.server.events")

_POLL_SECONDS: Final = 0.5
_GATHER_SECONDS: Final = 0.05  # Changes come in flocks, and each fan-out is a transaction on the writers' disk.
_SWEEP_SECONDS: Final = 600.0
_LAST_SECONDS: Final = 2.0  # For what is on its way when the process ends.
_COUNT_SECONDS: Final = 10.0
_LOOK_AT_ALL_SECONDS: Final = 10.0  # Where so much is due that `due_deliveries.due_webhooks` does not see all of it.
_IDLE_SECONDS: Final = 60.0  # After which a line ends for which nothing was due.
_LONGEST_DELAY: Final = 10.0  # Of the next claim for a webhook, after claims that found nothing.
_GROUP: Final = 100  # Events that leave the outbox in one transaction.
_MAX_RESPONSE_BYTES: Final = 16_384  # Only the status matters; the body is read so that the connection can be reused.

_REJECTED: Final = (400, 409)
_SENT: Final = {
    EventKind.CREATED: EventKind.CREATED_SENT,
    EventKind.UPDATED: EventKind.UPDATED_SENT,
    EventKind.DELETED: EventKind.DELETED_SENT,
}


@dataclass(slots=True)
class WebhookWorker:
    """A webhook that something is due for. free: places of those that may be on their way at a time.

    used: when something was due last. due: how many deliveries were, as far as is known. blocked: how many there were
    when none could be claimed, because each waits behind another one of its vehicle; no other claim is tried until that
    number changes or `next_claim` has come. Times are seconds of the monotonic clock.
    """

    webhook_id: str
    breaker: CircuitBreaker
    free: int
    used: float
    due: int | None = None
    blocked: int | None = None
    next_claim: float = 0.0
    delay: float = 0.0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: Supervised | None = None


class Dispatcher:
    """`open` begins to send; `close` it afterwards."""

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
    ) -> None:
        """new_events: set where it is known that there is something new in the outbox. guard: None for one of its own.

        budget: shared with the other outbound clients of the event loop. has_capacity: asked before deliveries
        start; False postpones them.
        """
        self._queue = FairQueue(has_capacity)
        self._guard = guard or ClockGuard(clock, store.time)
        self._metrics = metrics or Metrics()
        self._background = background or BackgroundTasks(self._metrics.task_failed)
        self._looking: Supervised | None = None
        self._store = store
        self._subscribers = subscribers
        self._clock = clock
        self._timeout = config.event_timeout
        self._places = config.event_concurrency
        self._retries = config.event_retries
        self._pause = timedelta(seconds=config.event_retry_delay)
        self._give_up = timedelta(seconds=config.event_max_age)
        self._keep = timedelta(seconds=config.event_retention)
        # Longer than an attempt and what is written before and after it, the database being slow.
        self._lease = timedelta(seconds=2 * config.event_timeout + 2)
        # With short retry delays, as in tests, a circuit stays open no longer than one of them.
        self._reset_timeout = min(RESET_TIMEOUT, config.event_retry_delay)
        self._max_reset_timeout = min(MAX_RESET_TIMEOUT, config.event_retry_delay)
        self._sweep_every = min(_SWEEP_SECONDS, config.event_max_age, config.event_retention or _SWEEP_SECONDS)
        # Lines limit themselves: with a limit on all of them those that hang would keep the others waiting.
        self._outbound = OutboundClient(config.egress_allow_networks, max_per_owner=None, budget=budget)
        self._group = _GROUP
        self._workers: dict[str, WebhookWorker] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._new_events = new_events or asyncio.Event()
        self._counted = self._looked_at_all = float("-inf")
        # Not at once: a clock that is wrong at the start may be found out before the first sweep.
        self._swept = time.monotonic()
        self._closing = False

    def open(self) -> None:
        """Begin to send, in the background."""
        task = PeriodicTask(
            "event_dispatch", self.once, _POLL_SECONDS, first_delay=0.0, wake=self._new_events, gather=_GATHER_SECONDS
        )
        self._looking = self._background.add(task)

    async def once(self) -> bool:
        """Put new events to webhooks, and wake the lines for which something is due. Returns whether there is more."""
        at = self._clock()
        more = False
        if await self._store.read(outbox.has_new_events()):
            more = await self._fan_out()
        await self._wake_due()
        if time.monotonic() - self._swept >= self._sweep_every:
            self._swept = time.monotonic()
            await self._sweep()
        if time.monotonic() - self._counted >= _COUNT_SECONDS:
            self._counted = time.monotonic()
            await self._bring_back()
            await self._end_idle()
            left = await self._store.read(deliveries.backlog())
            oldest = (at - left.oldest).total_seconds() if left.oldest is not None else 0.0
            self._metrics.events_left(left.outbox, left.waiting, left.dead, max(0.0, oldest))
        return more

    async def _fan_out(self) -> bool:
        """Put a group of events to webhooks. Returns whether there may be more. Raises Unavailable.

        An event may have many webhooks and the database be far away. A group that is not done within the time for a
        change would fail each time, so the next one is smaller.
        """
        group = self._group
        try:
            taken = await self._store.write(outbox.fan_out(self._clock(), group))
        except Unavailable:
            self._group = max(1, group // 4)
            raise
        self._group = min(2 * group, _GROUP)
        return taken == group

    async def _wake_due(self) -> None:
        """Wake the lines of webhooks for which something is due."""
        due = await self._store.read(due_deliveries.due_webhooks(self._clock()))
        for webhook_id, count in due.webhooks.items():
            self._wake(webhook_id, count)
        if due.complete or time.monotonic() - self._looked_at_all < _LOOK_AT_ALL_SECONDS:
            return
        self._looked_at_all = time.monotonic()
        after: str | None = ""
        while after is not None:
            found, after = await self._store.read(due_deliveries.due_webhooks_page(self._clock(), after))
            for webhook_id in found - due.webhooks.keys():
                self._wake(webhook_id, None)
            await asyncio.sleep(0)

    def _wake(self, webhook_id: str, due: int | None) -> None:
        """due: how many deliveries; None where that is not known."""
        if self._subscribers.active(webhook_id) is None:
            return  # Disabled, or registered within the last second.
        worker, now = self._worker(webhook_id), time.monotonic()
        worker.used, worker.due = now, due
        is_blocked = due is not None and due == worker.blocked and now < worker.next_claim
        if not (is_blocked or worker.breaker.is_open):
            worker.wake.set()

    async def _end_idle(self) -> None:
        """End the lines that nothing was due for, and those of webhooks that are not told of anything any more."""
        now = time.monotonic()
        for worker in list(self._workers.values()):
            # What is known of a webhook that does not answer is kept.
            idle = now - worker.used > _IDLE_SECONDS and worker.breaker.is_closed
            if (
                (idle or self._subscribers.active(worker.webhook_id) is None)
                and worker.free == self._places
                and worker.task is not None
            ):
                del self._workers[worker.webhook_id]
                await worker.task.stop()
                self._queue.remove(worker.webhook_id)

    async def _bring_back(self) -> None:
        """Make deliveries due that were put off far into the future by a clock that was ahead."""
        try:
            at = await self._guard.checked()
        except Unavailable:
            return  # The guard has logged it.
        horizon = at + max(self._lease, self._pause) + TOLERANCE
        while keys := await self._store.read(delivery_queue.scheduled_beyond(horizon)):
            brought = await self._store.write(delivery_queue.reschedule(keys, horizon, at))
            _log.warning("future deliveries rescheduled", events=brought)
            self._new_events.set()

    async def _sweep(self) -> None:
        try:
            at = await self._guard.checked()
        except Unavailable:
            return  # The guard has logged it.
        while given_up := await self._store.write(
            delivery_queue.expire(at - self._give_up, at, "It waited for too long.")
        ):
            _log.warning("events expired", events=given_up)
        while await self._store.write(deliveries.purge(at - self._keep)):
            pass

    def _worker(self, webhook_id: str) -> WebhookWorker:
        worker = self._workers.get(webhook_id)
        if worker is None:
            breaker = CircuitBreaker(time.monotonic, self._reset_timeout, self._max_reset_timeout)
            worker = WebhookWorker(webhook_id, breaker, self._places, time.monotonic())
            # What it is claiming when the process ends it still begins to send: until the lease ends no other could.
            task = PeriodicTask(
                "event_claim",
                partial(self._send_some, worker),
                math.inf,
                wake=worker.wake,
                max_retry_delay=5.0,
                interruptible=False,
                context={"webhook": webhook_id},
            )
            worker.task = self._background.add(task)
            self._workers[webhook_id] = worker
        return worker

    async def _send_some(self, worker: WebhookWorker) -> bool:
        """Begin as many attempts as there are places. Returns whether it is worth asking for more at once."""
        webhook = self._subscribers.active(worker.webhook_id)
        if webhook is None or self._closing or not self._queue.try_enter(worker.webhook_id, worker.wake):
            return False
        tries = 0
        while tries < worker.free and worker.breaker.allow():
            tries += 1
        if not tries:
            return False
        claimed: list[Delivery] = []
        try:
            at = self._clock()
            claimed = await self._store.write(delivery_queue.lease(worker.webhook_id, at, at + self._lease, tries))
        finally:
            if not claimed:
                worker.breaker.release()
        if claimed:
            worker.blocked, worker.delay = None, 0.0
        else:
            worker.blocked, worker.delay = worker.due, min(max(2 * worker.delay, _POLL_SECONDS), _LONGEST_DELAY)
            worker.next_claim = time.monotonic() + worker.delay
        worker.free -= len(claimed)
        for delivery in claimed:
            task = self._background.spawn(
                "event_delivery", self._send(worker, webhook, delivery), webhook=webhook.id, event_id=delivery.event_id
            )
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        return bool(claimed)

    async def _send(self, worker: WebhookWorker, webhook: Webhook, delivery: Delivery) -> None:
        try:
            status, error = await self._attempt(webhook, delivery)
            outcome = self._judge(status, delivery)
            self._metrics.event_tried(outcome.value.replace(" ", "_"))
            well = outcome in (AttemptOutcome.DELIVERED, AttemptOutcome.REJECTED)
            (worker.breaker.record_success if well else worker.breaker.record_failure)()
            await self._complete(delivery, outcome, status, error)
        except asyncio.CancelledError:
            await self._release(delivery)
            raise
        finally:  # Where something fails the lease runs out, and it is sent again.
            worker.free += 1
            worker.wake.set()

    async def _attempt(self, webhook: Webhook, delivery: Delivery) -> tuple[int | None, str | None]:
        """The status that a webhook answered, and what is wrong, as a sentence for its owner."""
        body = body_of(delivery)
        began = time.monotonic()
        status, error = None, None
        try:
            answer = await self._outbound.request(
                "POST",
                webhook.url,
                block_private=True,
                headers=headers_of(body, webhook.secret),
                content=body,
                timeout=self._timeout,
                max_bytes=_MAX_RESPONSE_BYTES,
                truncate=True,
                owner=webhook.client_id,
            )
            status = answer.status
            if not 200 <= status < 300:
                error = f"{host_of(webhook.url)} answered {status}."
        except OutboundError as exc:
            error = str(exc)
        _log.info(
            "event delivery attempted",
            webhook=webhook.id,
            party=webhook.client_id,
            event_id=delivery.event_id,
            kind=delivery.kind,
            attempt=delivery.attempts,
            status=status,
            reason=error,
            ms=round((time.monotonic() - began) * 1000, 2),
        )
        return status, error

    def _judge(self, status: int | None, delivery: Delivery) -> AttemptOutcome:
        if status is not None and 200 <= status < 300:
            return AttemptOutcome.DELIVERED
        if status in _REJECTED:
            return AttemptOutcome.REJECTED
        return AttemptOutcome.FAILED if delivery.attempts <= self._retries else AttemptOutcome.GIVEN_UP

    async def _complete(
        self, delivery: Delivery, outcome: AttemptOutcome, status: int | None, error: str | None
    ) -> None:
        tell = self._told_of(delivery, outcome)
        if tell is not None and not self._subscribers.wants(tell, delivery.emaid):
            tell = None
        for last in (False, False, True):
            at = self._clock()
            change = delivery_queue.ack(
                delivery, outcome, at, status=status, error=error, retry_at=at + self._pause, notify=tell
            )
            try:
                done = await self._store.write(change)
            except CCPError as exc:
                _log.warning("delivery outcome not stored", event_id=delivery.event_id, reason=str(exc))
                if last:
                    return
                await asyncio.sleep(0.5)
            else:
                if not done:
                    _log.warning("delivery lease lost", event_id=delivery.event_id)
                elif tell is not None:
                    self._new_events.set()
                return

    def _told_of(self, delivery: Delivery, outcome: AttemptOutcome) -> EventKind | None:
        """What the contract's provider is told of an attempt to tell the vehicle's maker."""
        sent = _SENT.get(EventKind(delivery.kind)) if delivery.kind in _SENT else None
        if sent is None:
            return None
        first = outcome is AttemptOutcome.FAILED and delivery.last_error is None
        return {AttemptOutcome.DELIVERED: sent, AttemptOutcome.REJECTED: EventKind.REJECTED}.get(
            outcome, EventKind.QUEUED if first else None
        )

    async def _release(self, delivery: Delivery) -> None:
        try:
            await self._store.write(delivery_queue.nack(delivery, self._clock()))
        except CCPError as exc:
            _log.warning("delivery lease not released", event_id=delivery.event_id, reason=str(exc))

    async def close(self) -> None:
        """Let what is on its way come back, for a moment; what does not is free for other processes at once."""
        self._closing = True
        self._queue.close()
        if self._looking is not None:
            await self._looking.stop()
        await asyncio.gather(
            *(worker.task.stop(_LAST_SECONDS) for worker in self._workers.values() if worker.task is not None)
        )
        if self._sending:
            await asyncio.wait(self._sending, timeout=_LAST_SECONDS)
        left = list(self._sending)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._outbound.close()
