"""Several listeners on one socket.

uvloop accepts one connection for each listener in an iteration of the event loop. In an overloaded worker an iteration
takes some milliseconds, in a worker that was blocked much longer. With one listener, clients that reconnect would wait
in the accept queue for longer than they are willing to.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

LISTENERS: Final = 16
"""Connections accepted in an iteration: few enough that the loop does other work, and that workers share a burst."""


class ListenerGroup:
    """Several servers as one: the part of `asyncio.Server` that uvicorn uses."""

    def __init__(self, servers: list[asyncio.Server]) -> None:
        self._servers: Final = servers

    @property
    def sockets(self) -> Any:
        """The listening sockets."""
        return self._servers[0].sockets

    def close(self) -> None:
        """Stop listening."""
        for server in self._servers:
            server.close()

    async def wait_closed(self) -> None:
        """Wait until all servers are closed."""
        for server in self._servers:
            await server.wait_closed()


async def open_listeners(
    first: asyncio.Server, listen: Callable[[socket.socket], Awaitable[asyncio.Server]], count: int = LISTENERS
) -> ListenerGroup:
    """Add listeners to the sockets of a server, `count` in all. listen: makes a server of a listening socket."""
    copies = [socket.socket(fileno=os.dup(listening.fileno())) for listening in first.sockets for _ in range(count - 1)]
    return ListenerGroup([first, *[await listen(copy) for copy in copies]])
