"""Change counters for cache invalidation: how often each table that workers hold in memory has changed.

Workers read the counters (table `change_count`) every second. For parties and webhooks the table `change_log` holds the
key of the row of each change, so that a worker reloads these rows only (`ccp.server.storage.change_feed`).

A transaction that takes a number locks the row of its counter until it ends. So numbers commit in order: a process that
sees a number sees the change with this number and all changes before it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from ccp.server.storage.engine.query import Query, Statement, read_committed

MAX_LOGGED: Final = 2000
"""Changes of a counter that the log keeps. A process that is further behind reads the whole table."""


class ChangeCounter(StrEnum):
    """The counters; column `topic`."""

    PARTIES = "parties"
    PEERS = "peers"
    WEBHOOKS = "webhooks"
    ANCHORS = "anchors"
    SUBSCRIPTIONS = "subscriptions"
    NEGATIVES = "negatives"
    TOKEN_KEYS = "token_keys"  # noqa: S105  a name, no secret


_NEXT: Final = """
insert into change_count (topic, number) values ($1, 1)
on conflict (topic) do update set number = change_count.number + 1
"""


@read_committed
def read_all() -> Query[dict[str, int]]:
    """All counters."""
    rows = yield "select topic, number from change_count", ()
    return dict(rows)


def bump(counter: ChangeCounter) -> Statement:
    """Increment a counter. Part of every change of its table."""
    return _NEXT, (counter,)


def next_number(counter: ChangeCounter) -> Query[int]:
    """Increment a counter. Returns the number of this change."""
    rows = yield f"{_NEXT} returning number", (counter,)
    number: int = rows[0][0]
    return number


def lock(counter: ChangeCounter) -> Statement:
    """Lock a counter, and so its table against other writers, until the end of the transaction."""
    # Not `select … for update`, which would lock nothing if the row is missing.
    statement = """
    insert into change_count (topic, number) values ($1, 0)
    on conflict (topic) do update set number = change_count.number
    """
    return statement, (counter,)


def bump_and_log(counter: ChangeCounter, key: str) -> Query[None]:
    """Increment a counter that has a log, and log the key of the changed row. Part of every change of a row."""
    number = yield from next_number(counter)
    insert = """
    insert into change_log (topic, number, key) values ($1, $2, $3)
    on conflict (topic, number) do update set key = excluded.key
    """
    yield insert, (counter, number, key)
    yield "delete from change_log where topic = $1 and number <= $2", (counter, number - MAX_LOGGED)


def clear_log(counter: ChangeCounter) -> Statement:
    """Remove the log of a counter. Processes that have not read it then read the whole table."""
    return "delete from change_log where topic = $1", (counter,)


@read_committed
def log_entries(counter: ChangeCounter, after: int, limit: int) -> Query[list[tuple[int, str]]]:
    """Number and key of the changes after a number, in order.

    A missing number was taken by a release without the log, or has been removed from the log.
    """
    select = "select number, key from change_log where topic = $1 and number > $2 order by number limit $3"
    rows = yield select, (counter, after, limit)
    return [(number, key) for number, key in rows]


CHANGED_KEYS: Final = "(select key from change_log where topic = $1 and number > $2 and number <= $3)"
"""Subquery for `in`: keys of the changes with numbers above $2, up to $3."""
