"""Helpers for the webhook API, and for deliveries without a dispatcher."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from ccp.server.storage.queries import delivery_queue, outbox
from ccp.server.storage.queries.deliveries import Delivery
from ccp.server.storage.queries.delivery_queue import AttemptOutcome
from tests.world import Contract, Pool

BASE = "/opnc/v1/event/endpoints"
URL = "https://hooks.example/ccp?token=in-the-address"
CREATED, UPDATED, DELETED = (f"oem.contract.{what}" for what in ("created", "updated", "deleted"))


def call(pool: Pool, party: str | None, method: str, path: str = "", **options: Any) -> httpx.Response:
    headers = {**({"Authorization": f"Bearer {pool.token(party)}"} if party else {}), **options.pop("headers", {})}
    return pool.http.request(method, BASE + path, headers=headers, **options)


def ok(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


def subscribe(pool: Pool, party: str = "oem", *events: str, **members: Any) -> dict[str, Any]:
    """A new webhook, as it was answered."""
    body = {"url": URL, "enabledEvents": list(events) or [CREATED], **members}
    made: dict[str, Any] = ok(call(pool, party, "POST", json=body), 201)
    return made


def without_secret(made: dict[str, Any]) -> dict[str, Any]:
    """A webhook as any response but that of its creation shows it."""
    return {name: value for name, value in made.items() if name != "secret"}


def fanned_out(pool: Pool, *contracts: Contract) -> None:
    """Fan out every event of the outbox. contracts: names the contracts concerned; it has no effect."""
    while pool.change(outbox.fan_out(datetime.now(UTC))):
        pass


def copied(pool: Pool, count: int) -> None:
    """As many more deliveries like the one that there is."""
    same = "part, webhook_id, kind, emaid, namespace, payload, created_at, queued_at, lease_until, attempts, state"
    pool.sql(
        f"insert into delivery (pcid, rev, event_id, {same}, last_status, last_error, finished_at) "
        "with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < ?) "
        f"select pcid, rev + n, event_id || n, {same}, last_status, last_error, finished_at from delivery, numbers",
        count,
    )


def tried(
    pool: Pool, webhook_id: str, outcome: AttemptOutcome, status: int | None = None, error: str | None = None
) -> int:
    """Let everything that is due for a webhook come to this. Returns how many deliveries it was."""
    at = datetime.now(UTC)
    claimed: list[Delivery] = pool.change(delivery_queue.lease(webhook_id, at, at + timedelta(seconds=60), 1000))
    for each in claimed:
        done = delivery_queue.ack(each, outcome, at, status=status, error=error, retry_at=at + timedelta(hours=1))
        assert pool.change(done)
    return len(claimed)
