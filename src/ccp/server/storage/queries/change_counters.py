"""How often a table that every worker holds in memory has changed, and which rows the latest changes were about.

Workers compare the numbers of the topics (`change_count`) every second. For parties and webhooks `change_log` has the
key of the row that each change was about, so that a worker reads these rows alone (`ccp.server.storage.change_feed`).

A transaction that takes a number locks the row of its topic until it ends. So numbers are committed in their order: a
process that sees a number sees everything that was changed under it and under all numbers before it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from ccp.server.storage.engine.query import Query, Statement, read_committed

MAX_LOGGED: Final = 2000
"""Changes of a topic that the log keeps. A process that is further behind reads the whole table."""


class ChangeCounter(StrEnum):
    PARTIES = "parties"
    PEERS = "peers"
    WEBHOOKS = "webhooks"
    ANCHORS = "anchors"
    TOKEN_KEYS = "token_keys"  # noqa: S105  a name, no secret


_NEXT: Final = """
insert into change_count (topic, number) values ($1, 1)
on conflict (topic) do update set number = change_count.number + 1
"""


@read_committed
def read_all() -> Query[dict[str, int]]:
    rows = yield "select topic, number from change_count", ()
    return dict(rows)


def bump(topic: ChangeCounter) -> Statement:
    """Part of every change to the topic's table."""
    return _NEXT, (topic,)


def lock(topic: ChangeCounter) -> Statement:
    """From here to the end of the transaction nothing of the topic changes but by it."""
    # Not `select … for update`, which would lock nothing where there is no row yet.
    statement = """
    insert into change_count (topic, number) values ($1, 0)
    on conflict (topic) do update set number = change_count.number
    """
    return statement, (topic,)


def bump_and_log(topic: ChangeCounter, key: str) -> Query[None]:
    """As `bump`, for a topic with a log. Part of every change to a row of the topic's table. key: of the row."""
    rows = yield f"{_NEXT} returning number", (topic,)
    number = rows[0][0]
    insert = """
    insert into change_log (topic, number, key) values ($1, $2, $3)
    on conflict (topic, number) do update set key = excluded.key
    """
    yield insert, (topic, number, key)
    yield "delete from change_log where topic = $1 and number <= $2", (topic, number - MAX_LOGGED)


@read_committed
def log_entries(topic: ChangeCounter, after: int, limit: int) -> Query[list[tuple[int, str]]]:
    """Number and key of changes, from the one after that number, in order.

    A number that is missing was taken by a release before the log was there, or has been removed.
    """
    select = "select number, key from change_log where topic = $1 and number > $2 order by number limit $3"
    rows = yield select, (topic, after, limit)
    return [(number, key) for number, key in rows]


CHANGED_KEYS: Final = "(select key from change_log where topic = $1 and number > $2 and number <= $3)"
"""A set of keys, for `in`: those of the changes from the number after $2 to $3."""
