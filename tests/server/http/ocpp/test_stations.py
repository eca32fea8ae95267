"""Charging stations and back ends of the package ocpp, over WebSockets, get contracts for cars of both editions."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from ccp import exi
from ccp.client import AsyncClient, Credentials, EVCertificate
from ccp.exi import iso20
from tests.server.http.ocpp.payloads import payload
from tests.server.http.ocpp.stations import back_end, run, station
from tests.world import AT, SESSION, Pool

VERSIONS = ["2.0.1", "2.1"]


def client(pool: Pool) -> AsyncClient:
    return AsyncClient(pool.base_url, credentials=Credentials("cpo", pool.world.member("cpo").secret))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("edition", ["iso2", "iso20", "ed448"])
def test_station_hands_a_contract_to_the_car(pool: Pool, edition: str, version: str) -> None:
    car = pool.car(edition)
    contract = pool.publish(car)

    async def work() -> None:
        async with client(pool) as ccp, station(version, back_end(version, ccp, [])) as connected:
            answer = await connected.ask(car)
            assert answer.status == "Accepted"
            assert car.install(base64.b64decode(answer.exi_response), SESSION, AT)[0] == contract.emaid

    run(work())


@pytest.mark.parametrize("version", VERSIONS)
def test_car_with_several_contracts_gets_all_of_them(pool: Pool, version: str) -> None:
    """It repeats its unaltered request until the message says that nothing remains."""
    car = pool.car("iso20")
    emaids = [pool.publish(car).emaid for _ in range(3)]
    message = car.request(SESSION, AT)
    seen: list[EVCertificate] = []

    async def work() -> None:
        more = {"maximum_contract_certificate_chains": 3} if version == "2.1" else {}
        installed, remaining = [], 1
        async with client(pool) as ccp, station(version, back_end(version, ccp, seen)) as connected:
            while remaining:
                answer = await connected.ask(car, message, **more)
                found = base64.b64decode(answer.exi_response)
                installed.append(car.install(found, SESSION, AT)[0])
                remaining = _remaining(found)
                if version == "2.1":
                    assert answer.remaining_contracts == remaining
        assert installed == emaids

    run(work())
    assert [found.remaining_contracts for found in seen] == ([2, 1, 0] if version == "2.1" else [None] * 3)


def _remaining(message: bytes) -> int:
    found = exi.decode(message)
    assert isinstance(found, iso20.CertificateInstallationRes)
    return found.RemainingContractCertificateChains


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_station_learns_why_there_is_no_contract(pool: Pool, edition: str, version: str) -> None:
    car = pool.car(edition)

    async def work() -> None:
        async with client(pool) as ccp, station(version, back_end(version, ccp, [])) as connected:
            answer = await connected.ask(car)
            assert answer.status == "Failed"
            assert answer.status_info["reason_code"] == "NotFound"
            assert answer.status_info["additional_info"] == "No contract is stored for the vehicle."
            assert base64.b64decode(answer.exi_response)[:2] in (b"\x80\x98", b"\x80\x20")
            unread = await connected.ask(car, b"\x80\x98\x02")
            assert (unread.status, unread.exi_response) == ("Failed", "")

    run(work())


def test_prioritized_emaids_pass_through_the_package(pool: Pool) -> None:
    """The package writes the member's name in its own way and cannot send it, so the station's JSON is written here."""
    car = pool.car("iso20")
    emaids = [pool.publish(car).emaid for _ in range(2)]
    body: dict[str, Any] = payload(car, maximumContractCertificateChains=2, prioritizedEMAIDs=[emaids[1]])

    async def work() -> None:
        async with client(pool) as ccp:

            async def accept(connection: Any) -> None:
                await back_end("2.1", ccp, [])("CS-1", connection).start()

            async with serve(accept, "127.0.0.1", 0) as server:
                port = next(iter(server.sockets)).getsockname()[1]
                async with connect(f"ws://127.0.0.1:{port}") as connection:
                    await connection.send(json.dumps([2, "1", "Get15118EVCertificate", body]))
                    kind, _, answer = json.loads(await connection.recv())
            assert kind == 3, answer
            assert car.install(base64.b64decode(answer["exiResponse"]), SESSION, AT)[0] == emaids[1]
            assert answer["remainingContracts"] == 1

    run(work())
