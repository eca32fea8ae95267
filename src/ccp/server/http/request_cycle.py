"""A request and its answer, between a connection and the application; the body of an error."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Coroutine, Hashable
from typing import Any, Protocol

import httptools
import orjson
import structlog
from starlette.exceptions import HTTPException
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from ccp.server.http.admission import UNVERIFIED, WAITED, Admission, Lane

_log = structlog.get_logger("ccp.request")


class Carrier(Protocol):
    """The connection of a request, as the request needs it."""

    def run(self, cycle: RequestCycle) -> None:
        """Give the request to the application."""

    def shed(self, cycle: RequestCycle) -> None:
        """Answer that there is no time for it."""

    def counted_address(self, cycle: RequestCycle) -> Hashable:
        """What its client counts as while no token says who it is."""


class RequestCycle(RequestResponseCycle):
    """A request and its answer, where the request may prove invalid while it is being answered.

    It waits for its turn (`ccp.server.http.admission`) before it is given to the application; and once more when its
    body has come, if that came later.
    """

    carrier: Carrier
    admission: Admission
    lane: Lane | None = None
    caller: Hashable = None
    place = 0.0, 0
    arrived = 0.0
    period = 0
    started = False
    late = False
    """Started before its body had come."""
    _turn: asyncio.Future[None] | None = None

    broken: tuple[int, str] | None = None
    """Status and message to raise on the application's next receive."""
    last: bool = False
    """Nothing that came after it is read."""

    def cut(self, status: int, sentence: str) -> None:
        self.broken = status, sentence
        self.message_event.set()

    def begin(self) -> None:
        if self.arrived:
            scope: Any = self.scope
            scope[WAITED] = scope.get(WAITED, 0.0) + time.monotonic() - self.arrived
            self.arrived = 0.0
        if self._turn is not None:
            self._resume()
            return
        self.started = True
        if self.more_body:
            self.late = True
            self.admission.ended(self)  # As long as it waits for its client it keeps nothing else waiting.
        self.carrier.run(self)

    def refuse(self) -> None:
        if self._turn is not None:
            self.broken = 503, OVERLOADED
            self._resume()
        else:
            self.carrier.shed(self)

    def drop(self) -> None:
        if self._turn is not None:
            self._resume()

    def _resume(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None and not turn.done():
            turn.set_result(None)

    def authorization(self) -> bytes:
        return next((value for name, value in self.scope["headers"] if name == b"authorization"), b"")

    def address(self) -> Hashable:
        self.scope[UNVERIFIED] = True  # type: ignore[typeddict-unknown-key]
        return self.carrier.counted_address(self)

    async def run_asgi(self, app: ASGI3Application) -> None:
        try:
            await super().run_asgi(app)
        finally:
            self.admission.ended(self)

    async def _wait_for_turn(self) -> None:
        self.late = False
        self._turn = asyncio.get_running_loop().create_future()
        turn = self._turn
        self.admission.offer(self, self.scope["method"], self.scope["path"])
        try:
            await turn
        except asyncio.CancelledError:
            self.admission.gone(self)
            raise

    async def receive(self) -> Any:
        message: Any = None
        if self.broken is None:
            message = await super().receive()
            if self.late and not self.more_body and not self.disconnected:
                await self._wait_for_turn()
                if self.disconnected:
                    message = {"type": "http.disconnect"}
        if self.response_complete:
            return {"type": "http.disconnect"}
        if self.broken is not None:
            # Raised as the framework's own exception in the reader of the body, so it is answered and logged once.
            status, sentence = self.broken
            raise HTTPException(status, sentence, {"Retry-After": "2"} if status == 503 else None)
        if message["type"] == "http.disconnect" and self.more_body:
            raise HTTPException(400, "The connection ended before the request did.")
        return message

    def send(self, message: Any) -> Coroutine[Any, Any, None]:
        if self.flow.write_paused:
            self.admission.ended(self)  # As for a body: what waits for its client keeps nothing else waiting.
        ends = self.waiting_for_100_continue or not self.keep_alive
        if ends and self.more_body and not self.response_started:
            # Answered before the body has come. Nobody can tell whether a client that waits to be told sends it now, so
            # what comes next cannot be read; and where the connection ends anyway, the answer has to outlive the body.
            self.last = True
        if self.last:
            # The first part says that the connection ends. It is the connection itself that ends it then, after what
            # the client is still sending has been taken: else the network could lose the answer (RFC 9112 clause 9.6).
            self.keep_alive = message["type"] != "http.response.start"
        return super().send(message)

    async def send_500_response(self) -> None:
        trace_id = str(uuid.uuid4())
        _log.error("request handled", trace_id=trace_id, status=500, outcome="crashed")
        body = error_body("Something went wrong here; the trace id finds it in the log.", trace_id)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self.send(
            {"type": "http.response.start", "status": 500, "headers": [*headers, (b"connection", b"close")]}
        )
        await self.send({"type": "http.response.body", "body": body})


OVERLOADED = "The pool has more requests than it can answer in time. Try again in a few seconds."


def error_body(sentence: str, trace_id: str) -> bytes:
    return orjson.dumps({"errorMessages": [sentence], "traceId": trace_id})


def parser_message(exc: httptools.HttpParserError) -> str:
    """The parser's own words, which quote nothing of the request, unless it is about a path."""
    if isinstance(exc, httptools.HttpParserInvalidURLError):
        return "the path is not valid"
    words = str(exc).replace("`", "")
    return words[:1].lower() + words[1:] if words else "it cannot be read"
