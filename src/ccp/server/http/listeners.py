"""Several listeners on one socket.

uvloop accepts one connection for each listener in a turn of the event loop. In an overloaded worker a turn takes some
milliseconds, in one that was stuck much longer: clients that come back with new connections would wait in the system's
queue for longer than they are willing to.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

LISTENERS: Final = 16
"""Connections accepted in a turn: not more, so that the loop gets to do something else, and workers share a burst."""


class ListenerGroup:
    """The part of `asyncio.Server` that uvicorn uses, for several."""

    def __init__(self, servers: list[asyncio.Server]) -> None:
        self._servers: Final = servers

    @property
    def sockets(self) -> Any:
        return self._servers[0].sockets

    def close(self) -> None:
        for server in self._servers:
            server.close()

    async def wait_closed(self) -> None:
        for server in self._servers:
            await server.wait_closed()


async def open_listeners(
    first: asyncio.Server, listen: Callable[[socket.socket], Awaitable[asyncio.Server]], count: int = LISTENERS
) -> ListenerGroup:
    """Let a server's sockets be accepted from so many times in a turn. listen: makes a server of a listening socket."""
    copies = [socket.socket(fileno=os.dup(each.fileno())) for each in first.sockets for _ in range(count - 1)]
    return ListenerGroup([first, *[await listen(copy) for copy in copies]])
