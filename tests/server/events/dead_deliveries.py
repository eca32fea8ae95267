"""Replay and removal of dead deliveries as one query: of a webhook, or of one event."""

from __future__ import annotations

from datetime import datetime

from ccp.server.storage.engine.query import Query, Row
from ccp.server.storage.queries import deliveries
from ccp.server.storage.queries.deliveries import BEFORE_ALL


def replay_dead(now: datetime, *, webhook_id: str | None = None, event_id: str | None = None) -> Query[int]:
    """Queue dead deliveries again."""
    return (yield from deliveries.replay_keys(now, (yield from _keys(webhook_id, event_id))))


def drop_dead(*, webhook_id: str | None = None, event_id: str | None = None) -> Query[int]:
    """Delete dead deliveries."""
    return (yield from deliveries.drop_keys((yield from _keys(webhook_id, event_id))))


def _keys(webhook_id: str | None, event_id: str | None) -> Query[list[Row]]:
    if event_id is None:
        return (yield from deliveries.dead_keys(webhook_id, BEFORE_ALL, 1000))
    return [each.key for each in (yield from deliveries.find(event_id))]
