"""EgressBackend and EgressStream: buffering of requests, idle connections."""

from __future__ import annotations

import asyncio

import anyio
import httpcore
import pytest

from ccp.client import AsyncClient, NotFoundError
from ccp.ids import Namespace
from ccp.server.external.egress import EgressBackend, EgressStream
from ccp.server.external.resolver import Resolver
from ccp.server.runtime.loop_budget import LoopBudget
from tests.scripted_server import error, scripted

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PATH = "/opnc/v1/ccp/signedcontractdata"


class Transport(anyio.abc.ByteStream):
    """Notes what is sent, and answers."""

    def __init__(self, broken: bool = False) -> None:
        self.sent: list[bytes] = []
        self.broken = broken

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        return ANSWER

    async def send(self, item: bytes) -> None:
        if self.broken:
            raise anyio.BrokenResourceError
        self.sent.append(item)

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None: ...


async def exchange(transport: Transport, *parts: bytes) -> bytes:
    stream = EgressStream(transport, LoopBudget())
    for part in parts:
        await stream.write(part)
    answer = b""
    while len(answer) < len(ANSWER):
        answer += await stream.read(65_536)
    return answer


def test_egress_stream_sends_head_and_body_in_one_write() -> None:
    transport = Transport()
    assert asyncio.run(exchange(transport, b"POST / HTTP/1.1\r\n\r\n", b"body")) == ANSWER
    assert transport.sent == [b"POST / HTTP/1.1\r\n\r\nbody"]


def test_egress_stream_flushes_long_bodies() -> None:
    transport = Transport()
    parts = [b"x" * 40_000] * 4
    asyncio.run(exchange(transport, *parts))
    assert len(transport.sent) == 2
    assert b"".join(transport.sent) == b"".join(parts)


def test_egress_stream_reads_an_early_response() -> None:
    assert asyncio.run(exchange(Transport(broken=True), b"POST / HTTP/1.1\r\n\r\n", b"body")) == ANSWER


@pytest.mark.parametrize("closed_by", ["server", "time"])
def test_outbound_client_closes_idle_connections(closed_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccp.client.clients._KEEPALIVE", 0.1 if closed_by == "time" else 60)

    async def run() -> None:
        with scripted() as server:
            server.on(PATH, error(404, Connection="close" if closed_by == "server" else "keep-alive"))
            backend = EgressBackend(Resolver(), LoopBudget(), None)
            async with AsyncClient(server.url, token="t", network_backend=backend) as client:
                with pytest.raises(NotFoundError):
                    await client.deliver(b"\0", Namespace.ISO2)
                connections: list[httpcore.AsyncConnectionInterface] = client._pool.connections
                await client.close_expired()
                if closed_by == "time":
                    assert not connections[0].is_closed()
                    await asyncio.sleep(0.15)
                    await client.close_expired()
                assert all(each.is_closed() for each in connections)

    asyncio.run(run())
