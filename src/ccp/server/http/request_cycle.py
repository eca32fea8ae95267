"""One request and its response, between the connection and the application."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Coroutine, Hashable
from typing import Any, Protocol

import structlog
from starlette.exceptions import HTTPException
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from ccp.errors.codes import ErrorCode
from ccp.server.http.admission import UNVERIFIED, WAITED, Admission
from ccp.server.http.error_body import INTERNAL_ERROR, OVERLOADED, code_header, error_body
from ccp.server.http.fair_queue import Lane

_log = structlog.get_logger("ccp.request")


class CycleConnection(Protocol):
    """What a request needs of its connection."""

    def run(self, cycle: RequestCycle) -> None:
        """Pass the request to the application."""

    def shed(self, cycle: RequestCycle) -> None:
        """Answer 503 without starting the request."""

    def counted_address(self, cycle: RequestCycle) -> Hashable:
        """Return what the client counts as while its token is not verified."""


class RequestCycle(RequestResponseCycle):
    """A request and its response. The request may turn out to be invalid while it is being answered.

    It waits for admission (`ccp.server.http.admission`) before it is passed to the application, and again when its body
    is complete, if the body arrived later.
    """

    connection: CycleConnection
    admission: Admission
    lane: Lane | None = None
    caller: Hashable = None
    place = 0.0, 0
    arrived = 0.0
    period = 0
    started = False
    body_late = False
    """Started before its body was complete."""
    _admitted: asyncio.Future[None] | None = None

    deferred_error: tuple[int, str] | None = None
    """Status and message to raise on the application's next receive."""
    close_after_response: bool = False
    """Nothing that follows on the connection is read."""

    def abort_with(self, status: int, message: str) -> None:
        """Let the application's next receive raise an error."""
        self.deferred_error = status, message
        self.message_event.set()

    # Called by the admission.

    def begin(self) -> None:
        """Start the request, or continue it after its body arrived."""
        if self.arrived:
            scope: Any = self.scope
            scope[WAITED] = scope.get(WAITED, 0.0) + time.monotonic() - self.arrived
            self.arrived = 0.0
        if self._admitted is not None:
            self._resume()
            return
        self.started = True
        if self.more_body:
            self.body_late = True
            self.admission.ended(self)  # While it waits for its client it must not hold up other requests.
        self.connection.run(self)

    def refuse(self) -> None:
        """Answer 503."""
        if self._admitted is not None:
            self.deferred_error = 503, OVERLOADED
            self._resume()
        else:
            self.connection.shed(self)

    def drop(self) -> None:
        """Forget the request, whose client has disconnected."""
        if self._admitted is not None:
            self._resume()

    def _resume(self) -> None:
        admitted, self._admitted = self._admitted, None
        if admitted is not None and not admitted.done():
            admitted.set_result(None)

    def authorization(self) -> bytes:
        """Return the header Authorization; empty without one."""
        return next((value for name, value in self.scope["headers"] if name == b"authorization"), b"")

    def address(self) -> Hashable:
        """Return what the unverified caller counts as, and mark the request as one of an unverified caller."""
        self.scope[UNVERIFIED] = True  # type: ignore[typeddict-unknown-key]
        return self.connection.counted_address(self)

    # Called by uvicorn and the application.

    async def run_asgi(self, app: ASGI3Application) -> None:
        try:
            await super().run_asgi(app)
        finally:
            self.admission.ended(self)

    async def _wait_for_admission(self) -> None:
        self.body_late = False
        self._admitted = asyncio.get_running_loop().create_future()
        admitted = self._admitted
        self.admission.offer(self, self.scope["method"], self.scope["path"])
        try:
            await admitted
        except asyncio.CancelledError:
            self.admission.disconnected(self)
            raise

    async def receive(self) -> Any:
        message: Any = None
        if self.deferred_error is None:
            message = await super().receive()
            if self.body_late and not self.more_body and not self.disconnected:
                await self._wait_for_admission()
                if self.disconnected:
                    message = {"type": "http.disconnect"}
        if self.response_complete:
            return {"type": "http.disconnect"}
        if self.deferred_error is not None:
            # The framework's exception, raised where the body is read, so that it is answered and logged once.
            status, detail = self.deferred_error
            raise HTTPException(status, detail, {"Retry-After": "2"} if status == 503 else None)
        if message["type"] == "http.disconnect" and self.more_body:
            raise HTTPException(400, "The connection ended before the request did.")
        return message

    def send(self, message: Any) -> Coroutine[Any, Any, None]:
        if self.flow.write_paused:
            self.admission.ended(self)  # While it waits for its client it must not hold up other requests.
        closes = self.waiting_for_100_continue or not self.keep_alive
        if closes and self.more_body and not self.response_started:
            # Answered before the body arrived. A client that expects 100 Continue may or may not send the body now, so
            # what follows cannot be parsed. If the connection closes anyway, the response has to outlive the body.
            self.close_after_response = True
        if self.close_after_response:
            # The response announces the close. The connection performs it after it has read what the client is still
            # sending: otherwise a reset could destroy the response (RFC 9112 clause 9.6).
            self.keep_alive = message["type"] != "http.response.start"
        return super().send(message)

    async def send_500_response(self) -> None:
        trace_id = str(uuid.uuid4())
        _log.error("request handled", trace_id=trace_id, status=500, outcome="crashed", code=ErrorCode.INTERNAL_ERROR)
        body = error_body(INTERNAL_ERROR, trace_id)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers.append(code_header(ErrorCode.INTERNAL_ERROR))
        await self.send(
            {"type": "http.response.start", "status": 500, "headers": [*headers, (b"connection", b"close")]}
        )
        await self.send({"type": "http.response.body", "body": body})
