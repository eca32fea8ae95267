"""Connections while a worker is overloaded or stuck: new ones are accepted soon, and those in use are kept."""

from __future__ import annotations

import asyncio
import socket
import time

from ccp.server.access.client_address import TrustedProxies
from ccp.server.http.connection_limits import ConnectionRegistry
from ccp.server.http.tls import Loop
from ccp.server.settings import Settings


class Idle:
    """A connection that has been idle for some seconds."""

    def __init__(self, seconds: float) -> None:
        self.counted: bytes | None = None
        self.since = time.monotonic() - seconds
        self.closed = False

    def check_deadlines(self, now: float, pressure: float) -> None:
        pass

    def idle_since(self) -> float | None:
        return self.since

    def stalled_since(self) -> float | None:
        return None

    def give_way(self) -> bool:
        self.closed = True
        return False

    def abort(self) -> None:
        self.closed = True


def full(seconds: float) -> tuple[ConnectionRegistry, list[Idle]]:
    connections = ConnectionRegistry(Settings(max_connections=3), TrustedProxies(()))
    found = [Idle(seconds) for _ in range(3)]
    for number, each in enumerate(found):
        assert connections.register(each, f"192.0.2.{number}") is None
    return connections, found


def test_connection_used_lately_does_not_give_way_under_overload() -> None:
    connections, found = full(seconds=1.0)
    connections.admission.overloaded = True
    for number in range(10):
        refused = connections.register(Idle(0), f"198.51.100.{number}")
        assert refused is not None
        assert refused[0] == 503
    assert not any(each.closed for each in found)
    connections.admission.overloaded = False
    assert connections.register(Idle(0), "198.51.100.99") is None
    assert sum(each.closed for each in found) == 1


def test_connection_idle_for_long_gives_way_under_overload_too() -> None:
    connections, found = full(seconds=5.0)
    connections.admission.overloaded = True
    assert connections.register(Idle(0), "198.51.100.1") is None
    assert sum(each.closed for each in found) == 1


def test_loop_that_was_stuck_accepts_many_connections_in_a_turn() -> None:
    accepted = 0

    class Counting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal accepted
            accepted += 1

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Counting, "127.0.0.1", 0, backlog=256)
        try:
            address = server.sockets[0].getsockname()
            # The system connects them while the loop does something else.
            clients = [socket.create_connection(address) for _ in range(96)]
            for _ in range(12):
                await asyncio.sleep(0)
            assert accepted == 96
            for client in clients:
                client.close()
        finally:
            server.close()
            await server.wait_closed()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(run())


def test_connections_are_no_more_accepted_by_a_closed_server() -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        server.close()
        await server.wait_closed()
        try:
            socket.create_connection(address, timeout=1).close()
        except OSError:
            return
        raise AssertionError("a listener is left")

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(run())
