"""Queries for diagnosis: the webhooks whose events wait or were given up.

Each row is found by an index of waiting or dead deliveries, and counts end at a limit, so the cost does not grow with
the deliveries.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ccp.server.storage.engine.query import Query, long_read
from ccp.server.storage.queries.contracts import instant, microseconds

MAX_COUNTED: Final = 1000
_EXAMINED: Final = 200


@dataclass(frozen=True, slots=True)
class WebhookHealth:
    """dead, waiting: deliveries, at most MAX_COUNTED each. url: None for a webhook that has been removed.

    last_status, last_error: of an attempt that failed and is to be repeated; None without one. untried: since when a
    due delivery has waited for its first attempt; None without one.
    """

    webhook_id: str
    client_id: str | None
    url: str | None
    dead: int
    waiting: int
    last_status: int | None
    last_error: str | None
    untried: datetime | None


@long_read
def list_troubled(now: datetime, limit: int) -> Query[list[WebhookHealth]]:
    """Webhooks with waiting or dead deliveries, by id."""
    names: set[str] = set()
    for state in ("dead", "waiting"):
        after = ""
        for _ in range(limit):
            rows = yield (
                f"select webhook_id from delivery where state = '{state}' and webhook_id > $1 "  # noqa: S608  constants
                "order by webhook_id limit 1",
                (after,),
            )
            if not rows:
                break
            after = rows[0][0]
            names.add(after)
    found: list[WebhookHealth] = []
    for name in sorted(names)[:limit]:
        health = yield from _health(name, now)
        found.append(health)
    return found


def _health(webhook_id: str, now: datetime) -> Query[WebhookHealth]:
    counts = {}
    for state in ("dead", "waiting"):
        rows = yield (
            "select count(*) from (select 1 from delivery "  # noqa: S608  constants
            f"where state = '{state}' and webhook_id = $1 limit {MAX_COUNTED}) as some",
            (webhook_id,),
        )
        counts[state] = rows[0][0]
    waiting = yield (
        "select attempts, last_status, last_error, queued_at, lease_until from delivery "  # noqa: S608  constants
        f"where state = 'waiting' and webhook_id = $1 order by lease_until limit {_EXAMINED}",
        (webhook_id,),
    )
    failed = next(((row[1], row[2]) for row in waiting if row[0] > 0 and (row[1] or row[2])), (None, None))
    untried = min((row[3] for row in waiting if row[0] == 0 and row[4] <= microseconds(now)), default=None)
    owner = yield "select client_id, url from webhook where id = $1", (webhook_id,)
    return WebhookHealth(
        webhook_id,
        owner[0][0] if owner else None,
        owner[0][1] if owner else None,
        counts["dead"],
        counts["waiting"],
        failed[0],
        failed[1],
        None if untried is None else instant(untried),
    )
