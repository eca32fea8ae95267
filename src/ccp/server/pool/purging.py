"""Find everything that may be purged, portion by portion. The queries are in `ccp.server.storage.queries.purging`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

from ccp.ids import EMAID
from ccp.server.storage import Store
from ccp.server.storage.queries import contract_portions, handed_out
from ccp.server.storage.queries import purging as queries
from ccp.server.storage.queries.contract_portions import FIRST_CERTIFICATE, FIRST_CONTRACT, Cursor


async def candidates(store: Store, before: datetime) -> AsyncIterator[EMAID]:
    """Contracts with a variant that expired before that time, and contracts whose certificate is revoked.

    A contract may be yielded more than once. Whether it is purged is decided while it is locked. Raises Unavailable.
    """
    # Variants of a contract mostly expire together, so it is enough to skip those of the portion before.
    seen: set[EMAID] = set()
    after: Cursor | None = FIRST_CONTRACT
    while after is not None:
        portion = await store.read(queries.expired(before, after))
        for emaid in portion.emaids:
            if emaid not in seen:
                yield emaid
        seen, after = set(portion.emaids), portion.following
    after = FIRST_CERTIFICATE
    while after is not None:
        portion = await store.read(contract_portions.revoked(after))
        for emaid in portion.emaids:
            yield emaid
        after = portion.following


async def remove_idle_vehicles(store: Store, before: datetime) -> None:
    """Remove the rows of vehicles that hold nothing but a provisioning event from before that time.

    Raises Unavailable.
    """
    after: Cursor | None = queries.FIRST_VEHICLE
    while after is not None:
        portion = await store.read(queries.idle_vehicles(before, after))
        if portion.vehicles:
            await store.write(queries.remove_vehicles(portion.vehicles))
        after = portion.following


async def remove_handed_out(store: Store, now: datetime) -> None:
    """Remove what is remembered of deliveries one by one and has expired. Raises Unavailable."""
    while await store.write(handed_out.remove_expired(now)) >= handed_out.PORTION:
        pass
