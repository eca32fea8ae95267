"""Vehicles' requests to pools with peers, and waiting until a pool knows a peer."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ccp.testing.partners import Car
from tests.server.http.api.answers import sentences
from tests.world import Pool

ASK = {"broadcast": "true"}


def deliver(pool: Pool, car: Car, headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    answer = pool.post(car, headers=ASK if headers is None else headers)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["signedContractDataCollection"]
    return items


def to(pool: str) -> dict[str, str]:
    return {"OPNC-to-party-type": "ccp", "OPNC-to-party-id": pool}


PATH = "/opnc/v1/ccp/signedcontractdata"


def until_known(pool: Pool, name: str) -> None:
    """Wait until a pool knows a peer. The error for a request of a pool shows it, and no peer is called."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        answer = pool.client("peer").post("/signedcontractdata", headers=to(name))
        if sentences(answer, 404) == ["A request of another pool is not passed on."]:
            return
        time.sleep(0.05)
    pytest.fail(f"{name} was not taken over")
