"""Replay and removal of dead deliveries as one query."""

from __future__ import annotations

from datetime import datetime

from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import deliveries


def replay_dead(now: datetime, **which: str) -> Query[int]:
    """Queue the chosen dead deliveries again. which: as of `deliveries.dead_keys`."""
    return (yield from deliveries.replay_keys(now, (yield from deliveries.dead_keys(**which))))


def drop_dead(**which: str) -> Query[int]:
    """Delete the chosen dead deliveries."""
    return (yield from deliveries.drop_keys((yield from deliveries.dead_keys(**which))))
