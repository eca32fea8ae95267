"""A charging station and a charging back end (CSMS) of the package ocpp, connected by a WebSocket on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import websockets
from ocpp import v21, v201
from ocpp.routing import on
from ocpp.v21 import call as call_21
from ocpp.v21 import call_result as result_21
from ocpp.v201 import call as call_201
from ocpp.v201 import call_result as result_201
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from ccp.client import AsyncClient, EVCertificate
from ccp.testing.partners import Car
from tests.server.http.ocpp.payloads import payload

SUBPROTOCOLS = {"2.0.1": "ocpp2.0.1", "2.1": "ocpp2.1"}
CALLS: dict[str, ModuleType] = {"2.0.1": call_201, "2.1": call_21}
RESULTS: dict[str, ModuleType] = {"2.0.1": result_201, "2.1": result_21}
CHARGE_POINTS: dict[str, Any] = {"2.0.1": v201.ChargePoint, "2.1": v21.ChargePoint}
SCHEMA_VERSION = {"2.0.1": "iso15118_schema_version", "2.1": "iso_15118_schema_version"}


def back_end(version: str, ccp: AsyncClient, seen: list[EVCertificate]) -> Any:
    """The class of a CSMS's connections: it asks the pool and hands on what the pool says."""

    class BackEnd(CHARGE_POINTS[version]):  # type: ignore[misc]
        @on("Get15118EVCertificate")
        async def answer(self, call_unique_id: str, **request: Any) -> Any:
            found = await ccp.get_15118_ev_certificate(request, version=version, message_id=call_unique_id)
            seen.append(found)
            return RESULTS[version].Get15118EVCertificate(**found.arguments)

    return BackEnd


class Station:
    """A charging station. It passes a car's request on, as often as the car repeats it."""

    def __init__(self, version: str, point: Any) -> None:
        self._version = version
        self._point = point

    async def ask(self, car: Car, message: bytes | None = None, **members: Any) -> Any:
        """Send a Get15118EVCertificateRequest, which the package validates; so it does the response."""
        body = payload(car, message)
        arguments: dict[str, Any] = {
            SCHEMA_VERSION[self._version]: body["iso15118SchemaVersion"],
            "action": body["action"],
            "exi_request": body["exiRequest"],
            **members,
        }
        return await self._point.call(CALLS[self._version].Get15118EVCertificate(**arguments), suppress=False)


@asynccontextmanager
async def connected(version: str, url: str) -> AsyncIterator[Station]:
    """A station that is connected to the back end at an address."""
    subprotocol: Any = SUBPROTOCOLS[version]
    async with connect(url, subprotocols=[subprotocol]) as connection:
        assert connection.subprotocol == subprotocol
        point = CHARGE_POINTS[version]("CS-1", connection)
        receiving = asyncio.create_task(point.start())
        try:
            yield Station(version, point)
        finally:
            receiving.cancel()
            with contextlib.suppress(asyncio.CancelledError, websockets.ConnectionClosed):
                await receiving


@asynccontextmanager
async def station(version: str, of_connection: Callable[[str, Any], Any]) -> AsyncIterator[Station]:
    """A station and its back end. of_connection: makes the back end's side of a connection."""

    async def accept(connection: ServerConnection) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            await of_connection("CS-1", connection).start()

    subprotocol: Any = SUBPROTOCOLS[version]
    async with serve(accept, "127.0.0.1", 0, subprotocols=[subprotocol]) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with connected(version, f"ws://127.0.0.1:{port}/CS-1") as found:
            yield found


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))
