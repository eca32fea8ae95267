"""Requests leave nothing behind that only the garbage collector finds, refused ones neither.

The collector of a worker looks through everything seldom, as it stops every request meanwhile. What requests leave in
reference cycles would stay until then: an error that is kept holds its frames, and with them a whole request.
"""

from __future__ import annotations

import gc
import random
import socket
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from ccp.server.http.protocol import Connection
from tests.world import AT, ISO2, SESSION, Pool, b64, post_body

REQUESTS = 30
Act = Callable[[Pool, random.Random], object]


def flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    bit = chance.randrange(8 * len(data))
    changed[bit // 8] ^= 0x80 >> bit % 8
    return bytes(changed)


def publish(dry: bool) -> Act:
    def act(pool: Pool, chance: random.Random) -> None:
        contract = pool.contract(pool.car())
        body = {**contract.body, "certificateInstallationRes": b64(flipped(contract.message, chance))}
        pool.cps.put("/signedcontractdata", params={"dryRun": "true"} if dry else {}, json=body)

    return act


def deliver(pool: Pool, chance: random.Random) -> None:
    data = flipped(pool.car().request(SESSION, AT), chance)
    pool.cpo.post("/signedcontractdata", json=post_body(data, ISO2))


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
def test_request_leaves_nothing_for_the_garbage_collector(pool: Pool, name: str) -> None:
    chance = random.Random(name)
    for _ in range(3):
        ACTS[name](pool, chance)
    with collected() as found:
        for _ in range(REQUESTS):
            ACTS[name](pool, chance)
    ours = [repr(each)[:200] for each in found if is_ours(each)]
    assert not ours, (len(ours), ours[:5])


_GET = b"GET /health/live HTTP/1.1\r\nHost: ccp.example\r\n"
CONNECTIONS = {
    "no request": b"",
    "a request": _GET + b"\r\n",
    "a request that ends the connection": _GET + b"Connection: close\r\n\r\n",
    "requests sent ahead": 5 * (_GET + b"\r\n"),
    "half a head": _GET,
    "half a body": b"POST /oauth/token HTTP/1.1\r\nHost: ccp.example\r\nContent-Length: 10\r\n\r\n12345",
    "no HTTP": b"garbage\r\n\r\n",
    "a body that is too large": b"PUT / HTTP/1.1\r\nHost: ccp.example\r\nContent-Length: 999999999\r\n\r\n",
}


def connect(pool: Pool, data: bytes, *, reset: bool) -> None:
    parts = urlsplit(pool.base_url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as client:
        client.sendall(data)
        if data.endswith(b"\r\n\r\n"):
            client.recv(65_536)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("name", CONNECTIONS)
def test_connection_leaves_nothing_for_the_garbage_collector(pool: Pool, name: str, reset: bool) -> None:
    connect(pool, CONNECTIONS[name], reset=reset)
    with collected() as found:
        before = {id(each) for each in gc.get_objects() if isinstance(each, Connection)}
        for _ in range(REQUESTS):
            connect(pool, CONNECTIONS[name], reset=reset)
        deadline = time.monotonic() + 20
        while any(isinstance(each, Connection) and id(each) not in before for each in gc.get_objects()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
    ours = [repr(each)[:200] for each in found if is_ours(each)]
    assert not ours, (len(ours), ours[:5])
    assert time.monotonic() < deadline, "connections are kept"
