"""Workers in processes of their own hand out a car's contracts, each of them once in a round."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ccp.schemas.ocpp import PATH
from ccp.testing.pki import PKI
from tests.cli.served_sandbox import free_port, serving
from tests.databases import Server
from tests.server.http.ocpp.payloads import installed, payload
from tests.world import AT, SESSION, start


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_workers_hand_out_each_contract_once(
    pkis: dict[str, PKI], tmp_path: Path, request: pytest.FixtureRequest, engine: str
) -> None:
    database: dict[str, str] = {}
    if engine == "postgresql":
        server: Server = request.getfixturevalue("postgres")
        database = {"database": server.database()}
    with start({"iso20": pkis["iso20"]}, **database) as pool:
        car = pool.car("iso20")
        emaids = sorted(pool.publish(car).emaid for _ in range(4))
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        config = tmp_path / "ccp.toml"
        config.write_text(
            f'database = "{pool.settings.database}"\nport = {port}\nworkers = 3\nbase_url = "{url}"\n'
            'log_level = "error"\nevent_dispatch = false\n'
        )
        body = payload(car, car.request(SESSION, AT, max_chains=8))
        with serving(url, "--config", config, log=tmp_path / "log") as http:
            secret = pool.world.member("cpo").secret
            form = {"grant_type": "client_credentials", "client_id": "cpo", "client_secret": secret}
            token = http.post("/oauth/token", data=form).json()["access_token"]
            headers = {"Authorization": f"Bearer {token}"}
            for _ in range(10):
                barrier = threading.Barrier(4)

                def asked(number: int, barrier: threading.Barrier = barrier) -> tuple[str, int]:
                    # A connection of its own, which any worker may accept.
                    with httpx.Client(base_url=url, headers=headers, timeout=20) as station:
                        barrier.wait(20)
                        answer = station.post(PATH, json=body, params={"ocppVersion": "2.1"}).json()
                    return installed(answer, car), answer["remainingContracts"]

                with ThreadPoolExecutor(4) as threads:
                    found = list(threads.map(asked, range(4)))
                assert sorted(emaid for emaid, _ in found) == emaids
                assert sorted(remaining for _, remaining in found) == [0, 1, 2, 3]
