"""Around every request: a trace id, one log event, a count, headers for safety, and an answer whatever happens.

A refused access goes into the audit trail too, see `ccp.server.audit.refusals.AccessDenialRecorder`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import orjson
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ccp.errors import CCPError, FieldError
from ccp.ids import EMAID, PCID
from ccp.server.audit.pseudonyms import Pseudonyms
from ccp.server.audit.refusals import AccessDenialRecorder
from ccp.server.metrics import Metrics
from ccp.server.storage.queries.audit import UNKNOWN, Action, Entry
from ccp.x509.parse_errors import is_panic

_log = structlog.get_logger("ccp.request")
_KEY: Final = "ccp.trace"
INTERNAL_ERROR: Final = "Something went wrong here; the trace id finds it in the log."

# Fixed segments of the API's paths, matched without regard to case: partners write them in both ways.
_SEGMENTS: Final = {
    segment.lower(): segment
    for segment in (
        *("opnc", "v1", "ccp", "contractData", "emaid", "pcid", "signedcontractdata", "setdefault"),
        *("event", "endpoints", "deliveries"),
    )
}
# OPCP writes the same words in another case, so its paths, which begin with the version, have a list of their own.
_OPCP_SEGMENTS: Final = {
    segment.lower(): segment
    for segment in (
        *("v1", "ccp", "root", "rootCerts", "signedContractData", "lookupContract", "provideSignedContractData"),
        "default",
    )
}
_DIALECTS: Final = {"opnc": _SEGMENTS, "v1": _OPCP_SEGMENTS}
# An answer is data and nothing else: not to be kept, guessed at, framed or run. A page brings a policy of its own.
_HEADERS: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
]
_TLS_HEADERS: Final = [*_HEADERS, (b"strict-transport-security", b"max-age=31536000")]


@dataclass(slots=True)
class Trace:
    """What is to be said of a request.

    caller: a client id, proven where `authenticated` says so, otherwise only claimed. registered: a party has that
    client id, which proves nothing, but shows that it is no driver's or vehicle's id. emaid, pcid: the ids that the
    request names, as far as they could be read. owner: provider id or WMI of these, which is no personal data.
    address: the client's, as far as it is known.
    """

    id: str
    caller: str | None = None
    authenticated: bool = False
    registered: bool = False
    operation: str | None = None
    emaid: EMAID | None = None
    pcid: PCID | None = None
    address: str | None = None
    failure: CCPError | None = None

    @property
    def owner(self) -> str | None:
        if self.emaid is not None:
            return self.emaid.provider
        return self.pcid.wmi if self.pcid is not None else None


def trace_of(scope: Scope) -> Trace:
    trace: Trace = scope[_KEY]
    return trace


class TraceMiddleware:
    """ASGI middleware, the outermost of ours."""

    def __init__(self, app: ASGIApp, pseudonyms: Pseudonyms, refusals: AccessDenialRecorder, metrics: Metrics) -> None:
        self._app = app
        self._pseudonyms = pseudonyms
        self._refusals = refusals
        self._metrics = metrics
        self._trace_ids = _trace_ids()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = Trace(next(self._trace_ids))
        scope[_KEY] = trace
        raw = scope.get("raw_path") or b""
        read_path = _read_short_path if len(raw) <= _SHORT_PATH else _read_path
        scope["path"], trace.emaid, trace.pcid = read_path(scope["method"], scope["path"], raw)
        began = time.perf_counter()
        status = 0

        async def send_traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name.lower() for name, _ in message["headers"]}
                wanted = _TLS_HEADERS if scope.get("scheme") == "https" else _HEADERS
                extra = [header for header in wanted if header[0] not in present]
                message["headers"] = [*message["headers"], (b"x-trace-id", trace.id.encode()), *extra]
            await send(message)

        crash: BaseException | None = None
        try:
            await self._app(scope, receive, send_traced)
        except BaseException as exc:
            if not isinstance(exc, Exception) and not is_panic(exc):
                raise
            crash = exc
            if not status:
                await _answer_crash(trace, send_traced)
        finally:
            if status in _REFUSED:
                self._refusals.record(_refusal(trace, status, self._pseudonyms))
            self._tell(scope, trace, status, time.perf_counter() - began, crash)
            # The error's frames hold the scope, which holds this trace: a cycle that the collector would have to find.
            trace.failure = None

    def _tell(self, scope: Scope, trace: Trace, status: int, seconds: float, crash: BaseException | None) -> None:
        outcome = _outcome(trace, status)
        self._metrics.request(trace.operation, status, outcome, seconds)
        if crash is None and not _log.is_enabled_for(logging.INFO):
            return
        event: dict[str, Any] = {
            "trace_id": trace.id,
            "method": scope["method"],
            "operation": trace.operation,
            "caller": trace.caller if _is_client_id(trace) else self._pseudonyms.pseudonymise_text(trace.caller),
            "owner": trace.owner,
            **self._ids(trace),
            "status": status,
            "outcome": outcome,
            "ms": round(seconds * 1000, 2),
        }
        if crash is not None:
            _log.error("request handled", **event, exc_info=crash)
        elif trace.failure is not None:
            cause = trace.failure.__cause__
            # Of the cause the kind alone: a validator's own words quote the body.
            told = {"reason": str(trace.failure), "cause": type(cause).__name__ if cause else None}
            _log.info("request handled", **event, **told)
        else:
            _log.info("request handled", **event)

    def _ids(self, trace: Trace) -> dict[str, str]:
        named = {"emaid": self._pseudonyms.pseudonymise(trace.emaid), "pcid": self._pseudonyms.pseudonymise(trace.pcid)}
        return {kind: shown for kind, shown in named.items() if shown is not None}


def _trace_ids() -> Iterator[str]:
    """Random UUIDs (RFC 9562 clause 5.4), for which the system is asked once for many."""
    while True:
        digits = os.urandom(4096).hex()
        for at in range(0, len(digits), 32):
            one = digits[at : at + 32]
            variant = "89ab"[int(one[16], 16) & 3]
            yield f"{one[:8]}-{one[8:12]}-4{one[13:16]}-{variant}{one[17:20]}-{one[20:]}"


_REFUSED: Final = frozenset({401, 403, 429})
_CLAIM_LENGTH: Final = 64


def _is_client_id(trace: Trace) -> bool:
    """Whether the caller's name is certainly a client id. Any other name may be an EMAID or a PCID."""
    return trace.authenticated or trace.registered


def _claimed(trace: Trace, pseudonyms: Pseudonyms) -> str | None:
    if trace.authenticated or trace.caller is None:
        return None
    return (trace.caller if trace.registered else pseudonyms.replace_ids(trace.caller))[:_CLAIM_LENGTH]


def _refusal(trace: Trace, status: int, pseudonyms: Pseudonyms) -> Entry:
    """A refused access for the audit trail, with its ids in clear, but for what was claimed.

    An erasure finds ids in their canonical form only. So sentences, which name ids in any form, stay out, and ids that
    were claimed are pseudonymised.
    """
    told = {
        "operation": trace.operation,
        "address": trace.address,
        "emaid": trace.emaid,
        "pcid": trace.pcid,
        "claimed": _claimed(trace, pseudonyms),
        "cause": type(cause).__name__ if (cause := trace.failure and trace.failure.__cause__) else None,
    }
    return Entry(
        datetime.now(UTC),
        trace.caller if trace.authenticated and trace.caller is not None else UNKNOWN,
        Action.ACCESS_REFUSED,
        {name: value for name, value in told.items() if value is not None},
        f"{_outcome(trace, status)} {status}",
        trace.id,
    )


def _outcome(trace: Trace, status: int) -> str:
    if trace.failure is not None:
        return trace.failure.code
    return "ok" if status < 400 else "refused" if status < 500 else "crashed"


def _read_path(method: str, path: str, raw: bytes) -> tuple[str, EMAID | None, PCID | None]:
    """The path in its canonical form, and the ids in it."""
    path = _canonical(_path(path, raw))
    return path, *_ids_in(method, path)


_read_short_path: Final = lru_cache(1024)(_read_path)
"""Most requests go to a few paths. Long ones are not remembered: a thousand of them would take 12 MiB."""
_SHORT_PATH: Final = 160  # Bytes, as they came; no path of the API with its ids has more.


def _path(path: str, raw: bytes) -> str:
    """The decoded path. An encoded slash stays encoded: it is part of an id, which breaks its pattern then."""
    if b"%2f" not in raw.lower():
        return path
    return "/".join(unquote(segment).replace("/", "%2F") for segment in raw.decode("latin-1").split("/"))


def _canonical(path: str) -> str:
    """The path of an operation in its canonical case; any other as it is, since a client id may be one of the words."""
    segments = path.split("/")
    known = _DIALECTS.get(segments[1].lower()) if len(segments) > 1 else None
    return path if known is None else "/".join(known.get(segment.lower(), segment) for segment in segments)


def _ids_in(method: str, path: str) -> tuple[EMAID | None, PCID | None]:
    """The ids that a path of the API names, for the log and the trail: whatever becomes of the request."""
    match path.split("/")[1:]:
        case ["v1", "ccp", "signedContractData", pcid] if method in ("GET", "HEAD"):
            return None, _read(PCID, pcid)
        case ["v1", "ccp", "signedContractData" | "lookupContract", emaid]:
            return _read(EMAID, emaid), None
        case ["v1", "ccp", "provideSignedContractData", emaid, pcid]:
            return _read(EMAID, emaid), _read(PCID, pcid)
        case ["v1", "ccp", "signedContractData", pcid, emaid, "default"]:
            return _read(EMAID, emaid), _read(PCID, pcid)
        case ["opnc", "v1", "ccp", "contractData", "emaid", emaid]:
            return _read(EMAID, emaid), None
        case ["opnc", "v1", "ccp", "contractData", "pcid", pcid]:
            return None, _read(PCID, pcid)
        case ["opnc", "v1", "ccp", "signedcontractdata", emaid]:
            return _read(EMAID, emaid), None
        case ["opnc", "v1", "ccp", "signedcontractdata", emaid, pcid] | [
            "opnc", "v1", "ccp", "signedcontractdata", emaid, pcid, "setdefault",
        ]:  # fmt: skip
            return _read(EMAID, emaid), _read(PCID, pcid)
        case _:
            return None, None


Id = TypeVar("Id", EMAID, PCID)


def _read(kind: type[Id], text: str) -> Id | None:
    try:
        return kind.parse(text)
    except FieldError:
        return None


async def _answer_crash(trace: Trace, send: Send) -> None:
    body = orjson.dumps({"errorMessages": [INTERNAL_ERROR], "traceId": trace.id})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})
