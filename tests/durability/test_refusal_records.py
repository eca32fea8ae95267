"""Refusal records and counters of several worker processes, which are killed and started again."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import httpx
import pytest

from ccp.testing.pki import PKI
from tests.databases import sql
from tests.durability.load import serving
from tests.server.storage.made import new_database
from tests.waiting import wait_until
from tests.world import AT, SESSION, Pool, post_body

DELIVER = "GetSignedContractDataByCertificateInstallationReq"
WORKERS = 2


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return new_database(tmp_path)
    made: str = request.getfixturevalue("postgres").database()
    return made


def refused(pool: Pool, number: int) -> list[str]:
    """Refuse requests over connections of their own, which reach every worker. Returns their trace ids."""
    car = pool.car()
    body = post_body(car.request(SESSION, AT), str(car.namespace))
    address = f"{pool.base_url}/opnc/v1/ccp/signedcontractdata"
    headers = {"Authorization": f"Bearer {pool.token('cpo')}"}

    async def one() -> str:
        async with httpx.AsyncClient(timeout=30) as http:
            answer = await http.post(address, json=body, headers=headers)
        assert answer.headers["x-error-code"] == "no-contract-for-vehicle", answer.text
        return answer.headers["x-trace-id"]

    async def run() -> list[str]:
        return await asyncio.gather(*(one() for _ in range(number)))

    return asyncio.run(run())


def recorded(url: str) -> Counter[str]:
    return Counter(row[0] for row in sql(url, "select id from refusal"))


def counted(url: str) -> int:
    rows = sql(url, f"select number from request_count where operation = '{DELIVER}' and code <> ''")
    return sum(int(row[0]) for row in rows)


def test_refusals_of_two_workers_are_recorded_through_kills(url: str, pkis: dict[str, PKI], tmp_path: Path) -> None:
    with serving(pkis, tmp_path, url, workers=WORKERS, dispatch=False) as (served, pool):
        known = refused(pool, 40)
        wait_until(lambda: recorded(url) == Counter(known), timeout=20)
        wait_until(lambda: counted(url) == 40, timeout=20)
        lost = refused(pool, 20)
        served.kill()  # What is queued is lost; what is written stays, each record once.
        found = recorded(url)
        assert set(known) <= set(found) <= {*known, *lost}
        assert set(found.values()) == {1}
        before = counted(url)
        assert 40 <= before <= 60
        served.start()
        later = refused(pool, 20)
        assert served.process is not None
        served.process.send_signal(signal.SIGTERM)  # An orderly end writes what is queued.
        served.process.wait(30)
        assert recorded(url) == found + Counter(later)
        assert counted(url) == before + 20
