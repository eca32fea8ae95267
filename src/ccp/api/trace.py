"""Around every request: a trace id, one log event, headers for safety, and an answer whatever happens."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

import orjson
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ccp.errors import CCPError

_log = structlog.get_logger("ccp.request")
_KEY: Final = "ccp.trace"

# Fixed segments of the API's paths, matched without regard to case: partners write them in both ways.
_SEGMENTS: Final = {
    segment.lower(): segment
    for segment in ("opnc", "v1", "ccp", "contractData", "emaid", "pcid", "signedcontractdata", "setdefault")
}
# OPCP writes the same words in another case, so its paths, which begin with the version, have a list of their own.
_OPCP_SEGMENTS: Final = {
    segment.lower(): segment
    for segment in (
        *("v1", "ccp", "root", "rootCerts", "signedContractData", "lookupContract", "provideSignedContractData"),
        "default",
    )
}
_HEADERS: Final = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


@dataclass(slots=True)
class Trace:
    """What the log says of a request. owner: provider id or WMI of the id it names, which is no personal data."""

    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    caller: str | None = None
    operation: str | None = None
    owner: str | None = None
    failure: CCPError | None = None


def trace_of(scope: Scope) -> Trace:
    trace: Trace = scope[_KEY]
    return trace


class Tracing:
    """ASGI middleware, the outermost of ours."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = Trace()
        scope[_KEY] = trace
        scope["path"] = _canonical(_path(scope))
        began = time.perf_counter()
        status = 0

        async def send_traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name.lower() for name, _ in message["headers"]}
                extra = [header for header in _HEADERS if header[0] not in present]
                message["headers"] = [*message["headers"], (b"x-trace-id", trace.id.encode()), *extra]
            await send(message)

        crash: Exception | None = None
        try:
            await self._app(scope, receive, send_traced)
        except Exception as exc:
            crash = exc
            if not status:
                await _answer_crash(trace, send_traced)
        finally:
            self._tell(scope, trace, status, time.perf_counter() - began, crash)

    @staticmethod
    def _tell(scope: Scope, trace: Trace, status: int, seconds: float, crash: Exception | None) -> None:
        event: dict[str, Any] = {
            "trace_id": trace.id,
            "method": scope["method"],
            "operation": trace.operation,
            "caller": trace.caller,
            "owner": trace.owner,
            "status": status,
            "outcome": _outcome(trace, status),
            "ms": round(seconds * 1000, 2),
        }
        if crash is not None:
            _log.error("request", **event, exc_info=crash)
        elif trace.failure is not None:
            cause = trace.failure.__cause__
            # Of the cause the kind alone: a validator's own words quote the body.
            told = {"reason": str(trace.failure), "cause": type(cause).__name__ if cause else None}
            _log.info("request", **event, **told)
        else:
            _log.info("request", **event)


def _outcome(trace: Trace, status: int) -> str:
    if trace.failure is not None:
        return trace.failure.code
    return "ok" if status < 400 else "refused" if status < 500 else "crashed"


def _path(scope: Scope) -> str:
    """The decoded path. An encoded slash stays encoded: it is part of an id, which breaks its pattern then."""
    raw: bytes = scope.get("raw_path") or b""
    if b"%2f" not in raw.lower():
        path: str = scope["path"]
        return path
    return "/".join(unquote(segment).replace("/", "%2F") for segment in raw.decode("latin-1").split("/"))


def _canonical(path: str) -> str:
    segments = path.split("/")
    known = _OPCP_SEGMENTS if segments[1:2] and segments[1].lower() == "v1" else _SEGMENTS
    return "/".join(known.get(segment.lower(), segment) for segment in segments)


async def _answer_crash(trace: Trace, send: Send) -> None:
    messages = ["Something went wrong here; the trace id finds it in the log."]
    body = orjson.dumps({"errorMessages": messages, "traceId": trace.id})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})
