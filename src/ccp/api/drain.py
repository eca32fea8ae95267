"""An early refusal reaches its client: what is left of the request is taken off the connection first.

A server that answers and closes while octets of the request are still coming makes the system reset the connection, and
the answer, although sent, may be lost with it. Some clients do not survive that.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS: Final = 1.0
_OCTETS: Final = 4_194_304  # Who sends more than this after a refusal is not one of ours.


class Drained:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        ended = False

        async def watched() -> Message:
            nonlocal ended
            message = await receive()
            ended = message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def rest() -> None:
            taken = 0
            while not ended and taken < _OCTETS:
                taken += len((await watched()).get("body", b""))

        async def send_drained(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400 and not ended:
                try:
                    async with asyncio.timeout(_SECONDS):
                        await rest()
                except TimeoutError:
                    pass  # A client that slow loses what it is told.
            await send(message)

        await self._app(scope, watched, send_drained)


def _has_body(scope: Scope) -> bool:
    """Whether more is to come behind the head. Who waits to be asked for it (RFC 9110 clause 10.1.1) sends nothing."""
    names = {name for name, _ in scope["headers"]}
    return b"expect" not in names and (b"content-length" in names or b"transfer-encoding" in names)
