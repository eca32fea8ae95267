"""Questions about which webhooks have deliveries that are due. What goes before a delivery, `events.lease` looks at.

Dispatchers ask several times a second. So none of these reads more rows than a fixed number, however many webhooks
there are and however many deliveries wait for them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

from ccp.server.storage.engine.query import Query, read_committed
from ccp.server.storage.queries.contracts import microseconds

MAX_EXAMINED: Final = 1000
"""Deliveries from either end that are looked at where more are due."""
PAGE_SIZE: Final = 100
"""Webhooks that `due_webhooks_page` looks at."""

_DUE: Final = """
select webhook_id, count(*) from (
    select webhook_id from delivery where state = 'waiting' and lease_until <= $1 order by lease_until {} limit $2
) as due group by webhook_id
"""
_OLDEST, _NEWEST = _DUE.format("asc"), _DUE.format("desc")


class Due(NamedTuple):
    """webhooks: how many deliveries are due for each, by its id. complete: whether these are all; else the others have
    waited neither longest nor shortest, and `due_webhooks_page` finds them.
    """

    webhooks: dict[str, int]
    complete: bool


@read_committed
def due_webhooks(now: datetime) -> Query[Due]:
    """Webhooks for which something is due."""
    rows = yield _OLDEST, (microseconds(now), MAX_EXAMINED)
    found = {webhook_id: count for webhook_id, count in rows}  # noqa: C416  records are no tuples
    if sum(found.values()) < MAX_EXAMINED:
        return Due(found, complete=True)
    # A webhook that is not answered may have a long queue; what has come to the others meanwhile is at the other end.
    rows = yield _NEWEST, (microseconds(now), MAX_EXAMINED)
    return Due(found | {webhook_id: count + found.get(webhook_id, 0) for webhook_id, count in rows}, complete=False)


@read_committed
def due_webhooks_page(now: datetime, after: str) -> Query[tuple[set[str], str | None]]:
    """Webhooks for which something is due, of the next `PAGE_SIZE` ones after that id for which something waits.

    One step in the index for each, however much waits for it. Returns the last id too; None where there are no more.
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
