"""Queries for the webhooks that have deliveries due. `delivery_queue.lease` enforces the order of deliveries.

Dispatchers run them several times a second. So each reads at most a fixed number of rows, independent of the number of
webhooks and waiting deliveries.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

from ccp.server.storage.engine.query import Query, read_committed
from ccp.server.storage.queries.contracts import microseconds

MAX_EXAMINED: Final = 1000
"""Due deliveries that are examined from either end of the queue."""
PAGE_SIZE: Final = 100
"""Webhooks that `due_webhooks_page` examines."""

_DUE: Final = """
select webhook_id, count(*) from (
    select webhook_id from delivery where state = 'waiting' and lease_until <= $1 order by lease_until {} limit $2
) as due group by webhook_id
"""
_OLDEST, _NEWEST = _DUE.format("asc"), _DUE.format("desc")


class Due(NamedTuple):
    """webhooks: number of due deliveries, by webhook id. complete: these are all webhooks; otherwise the deliveries of
    the others are in the middle of the queue, and `due_webhooks_page` finds them.
    """

    webhooks: dict[str, int]
    complete: bool


@read_committed
def due_webhooks(now: datetime) -> Query[Due]:
    """The webhooks that have deliveries due."""
    rows = yield _OLDEST, (microseconds(now), MAX_EXAMINED)
    found = {webhook_id: count for webhook_id, count in rows}  # noqa: C416  records are no tuples
    if sum(found.values()) < MAX_EXAMINED:
        return Due(found, complete=True)
    # A failing webhook may have a long queue; newer deliveries of other webhooks are at the other end.
    rows = yield _NEWEST, (microseconds(now), MAX_EXAMINED)
    return Due(found | {webhook_id: count + found.get(webhook_id, 0) for webhook_id, count in rows}, complete=False)


@read_committed
def due_webhooks_page(now: datetime, after: str) -> Query[tuple[set[str], str | None]]:
    """Of the next `PAGE_SIZE` webhooks after an id that have deliveries waiting, those that have deliveries due.

    Each costs one step in the index, independent of its queue. Returns the last id too; None after the last page.
    """
    found: set[str] = set()
    select = """
    select webhook_id, lease_until from delivery where state = 'waiting' and webhook_id > $1
    order by webhook_id, lease_until limit 1
    """
    for _ in range(PAGE_SIZE):
        rows = yield select, (after,)
        if not rows:
            return found, None
        after, lease_until = rows[0]
        if lease_until <= microseconds(now):
            found.add(after)
    return found, after
