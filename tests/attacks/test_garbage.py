"""Requests leave nothing behind that only the garbage collector finds, refused ones neither.

The collector of a worker looks through everything seldom, as it stops every request meanwhile. What requests leave in
reference cycles would stay until then: an error that is kept holds its frames, and with them a whole request.
"""

from __future__ import annotations

import gc
import random
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.world import AT, ISO2, SESSION, Pool, b64, post_body

REQUESTS = 30
Act = Callable[[Pool, random.Random], object]


def flipped(octets: bytes, chance: random.Random) -> bytes:
    changed = bytearray(octets)
    bit = chance.randrange(8 * len(octets))
    changed[bit // 8] ^= 0x80 >> bit % 8
    return bytes(changed)


def publish(dry: bool) -> Act:
    def act(pool: Pool, chance: random.Random) -> None:
        contract = pool.contract(pool.car())
        body = {**contract.body, "certificateInstallationRes": b64(flipped(contract.message, chance))}
        pool.cps.put("/signedcontractdata", params={"dryRun": "true"} if dry else {}, json=body)

    return act


def deliver(pool: Pool, chance: random.Random) -> None:
    octets = flipped(pool.car().request(SESSION, AT), chance)
    pool.cpo.post("/signedcontractdata", json=post_body(octets, ISO2))


ACTS: dict[str, Act] = {
    "flipped publication": publish(dry=False),
    "flipped dry run": publish(dry=True),
    "flipped request": deliver,
    "unknown vehicle": lambda pool, chance: pool.post(pool.car()),
    "garbage": lambda pool, chance: pool.cps.put("/signedcontractdata", content=chance.randbytes(900)),
    "wrong token": lambda pool, chance: pool.client(None).post(
        "/signedcontractdata", json={}, headers={"Authorization": f"Bearer {chance.randbytes(40).hex()}"}
    ),
    "unknown contract": lambda pool, chance: pool.emsp.get(f"/contractData/emaid/DEEXA{chance.randrange(10**9):09}"),
    "strange path": lambda pool, chance: pool.emsp.get(f"/{chance.randbytes(20).hex()}"),
    "wrong role": lambda pool, chance: pool.emsp.put("/signedcontractdata", json={}),
}


@contextmanager
def collected() -> Iterator[list[object]]:
    """What a collection at the end finds, of what is made within the block."""
    found: list[object] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def is_ours(found: object) -> bool:
    """Whether the pool has made it, as opposed to the client, which runs in this process too."""
    if isinstance(found, types.FrameType):
        return found.f_globals.get("__name__", "").partition(".")[0] in ("ccp", "starlette", "fastapi", "pydantic")
    return type(found).__module__.partition(".")[0] in ("ccp", "starlette", "fastapi", "pydantic", "pydantic_core")


@pytest.mark.parametrize("name", ACTS)
def test_a_request_leaves_nothing_for_the_garbage_collector(pool: Pool, name: str) -> None:
    chance = random.Random(name)
    for _ in range(3):
        ACTS[name](pool, chance)
    with collected() as found:
        for _ in range(REQUESTS):
            ACTS[name](pool, chance)
    ours = [repr(each)[:200] for each in found if is_ours(each)]
    assert not ours, (len(ours), ours[:5])
