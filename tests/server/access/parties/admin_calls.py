"""Calls of the admin API."""

from __future__ import annotations

import itertools
import time
from typing import Any

import httpx

from ccp.server.domain.parties import PartyRole
from ccp.server.http.routes.admin import BASE
from ccp.server.storage.queries import peers
from ccp.server.storage.queries.peers import Peer
from tests.world import AT, Pool, party

ADMINS = [party("admin", PartyRole.ADMIN), party("second_admin", PartyRole.ADMIN)]


PEERS = ["far", "gone", "further"]
"""Party ids of the peers that `add_peers` registers."""

_NUMBERS = itertools.count(1)


def call(pool: Pool, method: str, path: str, caller: str | None = "admin", **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {pool.token(caller)}"} if caller else {}
    return pool.http.request(method, BASE + path, headers=headers, **options)


def add_peers(pool: Pool) -> None:
    for name in PEERS:
        pool.change(peers.add(Peer(name, f"https://{name}.example", client_id="us", secret="first-secret"), AT))


def ok(answer: httpx.Response, status: int = 200) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    members: dict[str, Any] = answer.json()
    return members


def fresh(pool: Pool, **members: Any) -> dict[str, Any]:
    """Add a party, by default a CPO. Returns the response with its client_secret."""
    number = next(_NUMBERS)
    body = {"name": f"Fresh {number}", "client_id": f"fresh-{number}", "roles": ["cpo"], **members}
    return ok(call(pool, "POST", "/parties", json=body), 201)


def new_wmi() -> str:
    return f"T{next(_NUMBERS):02d}"


def within_five_seconds(condition: Any) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 5
        time.sleep(0.05)


def register_of(pool: Pool) -> list[Any]:
    """Everything that a refused call must leave as it is."""
    return [
        pool.sql(f"select * from {table} order by 1, 2") for table in ("party", "party_owns", "party_secret", "peer")
    ]


GOOD = {"name": "Refused", "roles": ["cpo"]}


NAME = "name : must be at most 100 printable characters, and a letter or digit among them"
