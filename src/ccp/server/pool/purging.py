"""Going through everything that may be purged, portion by portion. The queries are in
`ccp.server.storage.queries.purging`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

from ccp.ids import EMAID
from ccp.server.storage import Store
from ccp.server.storage.queries import purging as queries


async def candidates(store: Store, before: datetime) -> AsyncIterator[EMAID]:
    """Contracts with a variant that had expired by then, and those whose certificate is revoked; each at least once in
    either role. Whether one is to go is judged while it is locked. Raises Unavailable.
    """
    seen: set[EMAID] = set()  # Of the last portion: a contract's variants mostly expire together.
    after: queries.Cursor | None = queries.FIRST_CONTRACT
    while after is not None:
        portion = await store.read(queries.expired(before, after))
        for emaid in portion.emaids:
            if emaid not in seen:
                yield emaid
        seen, after = set(portion.emaids), portion.following
    after = queries.FIRST_CERTIFICATE
    while after is not None:
        portion = await store.read(queries.revoked(after))
        for emaid in portion.emaids:
            yield emaid
        after = portion.following


async def remove_idle_vehicles(store: Store, before: datetime) -> None:
    """Remove the rows of vehicles that had nothing but a provisioning event, before then. Raises Unavailable."""
    after: queries.Cursor | None = queries.FIRST_VEHICLE
    while after is not None:
        portion = await store.read(queries.idle_vehicles(before, after))
        if portion.vehicles:
            await store.write(queries.remove_vehicles(portion.vehicles))
        after = portion.following
