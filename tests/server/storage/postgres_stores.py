"""PostgreSQL stores with short time limits, and queries on what they did."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

from ccp.errors import Unavailable
from ccp.ids import EMAID, PCID
from ccp.server.domain.contracts import SignedContract
from ccp.server.storage import Store, connect
from ccp.server.storage.engine.postgres import PostgresStore
from ccp.server.storage.engine.time_limits import TimeLimits
from ccp.server.storage.queries import contracts
from tests.databases import sql
from tests.server.storage.made import CAR, variant

LIMITS = TimeLimits(read=0.6, write=1.5)


SPARE = 2.0  # What a busy machine may add to a time limit; a request without one would wait for ever.


def numbered(number: int, pcid: PCID = CAR) -> SignedContract:
    return variant(EMAID(f"DEEXAE{number:08d}"), pcid)


def stored(url: str) -> set[str]:
    return {row[0] for row in sql(url, "select emaid from contract")}


def sessions(url: str) -> list[int]:
    """The server's processes for this release's connections to a database."""
    rows = sql(
        url,
        "select pid from pg_stat_activity where application_name = 'opnc-ccp' and datname = current_database()",
    )
    return [pid for (pid,) in rows]


@asynccontextmanager
async def opened(url: str, connections: int = 3, limits: TimeLimits = LIMITS) -> AsyncIterator[PostgresStore]:
    store = connect(url, connections, limits)
    assert isinstance(store, PostgresStore)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def timed(work: Awaitable[Any]) -> tuple[Any, float]:
    """What came of it, an error too, and how long it took."""
    began = time.monotonic()
    try:
        result = await work
    except Unavailable as exc:
        result = exc
    return result, time.monotonic() - began


async def until_served(store: Store, limit: float = 10.0) -> float:
    """How long it takes until a read is answered."""
    began = time.monotonic()
    while True:
        try:
            await store.read(contracts.by_vehicle(CAR))
        except Unavailable:
            assert time.monotonic() - began < limit, "it does not come back"
            await asyncio.sleep(0.02)
        else:
            return time.monotonic() - began
