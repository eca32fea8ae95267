"""Builders of audit trails and helpers to verify them."""

from __future__ import annotations

import asyncio
from typing import Any

from ccp.ids import EMAID, PCID
from ccp.server.audit.verification import ChainVerification, ChainVerifier, verify_trail
from ccp.server.storage import Store
from ccp.server.storage.queries import audit as queries
from ccp.server.storage.queries.audit import SHARDS, Action, ChainHead, Entry
from tests.server.storage.made import AT, SECOND, opened, write

ACTOR = "cps"


def vehicle_of(lane: int, number: int = 0) -> PCID:
    """The `number`-th vehicle whose rows stand in a lane."""
    return [pcid for pcid in _VEHICLES if entry(pcid).lane == lane][number]


def entry(pcid: PCID, emaid: str = "DEEXAA00000001", at: int = 0, **changes: Any) -> Entry:
    """at: seconds after the start of the test world."""
    fields: dict[str, Any] = {
        "at": AT + at * SECOND,
        "actor": ACTOR,
        "action": Action.CONTRACT_PUBLISHED,
        "subject": {"emaid": emaid, "pcid": pcid},
        "trace_id": f"trace-{at}",
    }
    return Entry(**{**fields, **changes})


_VEHICLES = [PCID(f"WEX0AUDIT{number:08d}") for number in range(400)]


def fill(url: str, lanes: tuple[int, ...] = tuple(range(SHARDS)), rows: int = 5) -> None:
    """So many rows in each of the lanes."""
    write(url, *(queries.record(entry(vehicle_of(lane), at=at)) for at in range(rows) for lane in lanes))


def verify(url: str, earlier: dict[int, ChainHead] | None = None) -> ChainVerification:
    async def run() -> ChainVerification:
        async with opened(url) as store:
            return await verified(store, earlier)

    return asyncio.run(run())


async def verified(store: Store, earlier: dict[int, ChainHead] | None = None) -> ChainVerification:
    verifier = ChainVerifier(earlier)
    async for _ in verify_trail(store, verifier):
        pass
    return verifier.result()


def broken(url: str, earlier: dict[int, ChainHead] | None = None) -> list[tuple[int, int]]:
    """Lane and number of the first broken row of each broken lane."""
    return [(each.lane, each.number) for each in verify(url, earlier).broken]


CONTRACT = EMAID("DEEXAA00000001")
