"""A proxy before a PostgreSQL server that cuts connections or drops packets when a test asks for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit, urlunsplit

COMMIT = b"Q\x00\x00\x00\x0bcommit\x00"
"""The message of the simple query protocol."""


class Cut(Enum):
    """When a connection is cut at a commit: before the server receives it, or before its answer."""

    BEFORE_COMMIT = 1
    AFTER_COMMIT = 2


@dataclass
class Proxy:
    """cut: cut the connection at the next commit, once. trips: number of answered messages.

    swallow: drop packets. A connection that lost one gets no more answers, as behind a firewall that has forgotten it;
    a connection that was idle meanwhile keeps working. connections: number of opened connections.
    """

    url: str
    cut: Cut | None = None
    trips: int = 0
    swallow: bool = False
    connections: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _passing: asyncio.Event = field(default_factory=asyncio.Event)

    def hold(self) -> None:
        """Delay packets, as a network does that retransmits them."""
        self._passing.clear()

    def let_go(self) -> None:
        """Forward the delayed packets."""
        self._passing.set()


@asynccontextmanager
async def between(url: str) -> AsyncIterator[Proxy]:
    """A proxy before the server of a database URL."""
    there = urlsplit(url)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        proxy.connections += 1
        proxy._writers.add(writer)
        await proxy._passing.wait()
        if proxy.swallow:
            with contextlib.suppress(ConnectionError):
                while await reader.read(65536):
                    pass
            return
        server_reader, server_writer = await asyncio.open_connection(there.hostname, there.port)
        proxy._writers.add(server_writer)
        lost = swallow = False

        async def forward_answers() -> None:
            nonlocal lost
            with contextlib.suppress(ConnectionError):
                while data := await server_reader.read(65536):
                    await proxy._passing.wait()
                    if swallow:
                        break
                    lost = lost or proxy.swallow
                    if lost:
                        continue
                    proxy.trips += 1
                    writer.write(data)
                    await writer.drain()
            if not lost:
                writer.transport.abort()

        answers = asyncio.create_task(forward_answers())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await proxy._passing.wait()
                lost = lost or proxy.swallow
                if lost:
                    continue
                if data == COMMIT and proxy.cut is not None:
                    cut, proxy.cut = proxy.cut, None
                    if cut is Cut.BEFORE_COMMIT:
                        break
                    swallow = True
                server_writer.write(data)
                await server_writer.drain()
        if not swallow:
            server_writer.transport.abort()
            writer.transport.abort()
        await answers
        server_writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    proxy = Proxy(urlunsplit(there._replace(netloc=f"{there.username}@127.0.0.1:{port}")))
    proxy.let_go()
    try:
        yield proxy
    finally:
        server.close()
        for writer in proxy._writers:
            writer.transport.abort()
