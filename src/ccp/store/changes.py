"""How often a table that every worker holds in memory has changed. Workers compare the numbers every second."""

from __future__ import annotations

from enum import StrEnum

from ccp.store.steps import Statement, Steps, newest


class Topic(StrEnum):
    PARTIES = "parties"
    PEERS = "peers"
    WEBHOOKS = "webhooks"
    ANCHORS = "anchors"
    TOKEN_KEYS = "token_keys"  # noqa: S105  a name, no secret


@newest
def numbers() -> Steps[dict[str, int]]:
    rows = yield "select topic, number from change_count", ()
    return dict(rows)


def count(topic: Topic) -> Statement:
    """Part of every change to the topic's table."""
    insert = """
    insert into change_count (topic, number) values ($1, 1)
    on conflict (topic) do update set number = change_count.number + 1
    """
    return insert, (topic,)
