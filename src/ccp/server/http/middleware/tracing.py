"""Middleware around every request: trace id, log event, metrics, security headers, and a response to every crash.

Denied access is recorded in the audit trail too, see `ccp.server.audit.refusals.AccessDenialRecorder`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ccp.errors import CCPError, FieldError
from ccp.errors.codes import ErrorCode, code_of_status
from ccp.ids import EMAID, PCID
from ccp.server.audit.pseudonyms import Pseudonyms
from ccp.server.audit.refusals import AccessDenialRecorder
from ccp.server.audit.refused_deliveries import RefusedDeliveries, RefusedRequest
from ccp.server.http.documentation_site import code_link
from ccp.server.http.error_body import INTERNAL_ERROR, code_header, error_body
from ccp.server.metrics import Metrics
from ccp.server.request_counts import dialect_of
from ccp.server.storage.queries.audit import UNKNOWN, Action, Entry
from ccp.x509.parse_errors import is_panic

_log = structlog.get_logger("ccp.request")
_KEY: Final = "ccp.trace"

# Fixed segments of the API's paths. They match in any case, because partners write them differently.
_SEGMENTS: Final = {
    segment.lower(): segment
    for segment in (
        *("opnc", "v1", "ccp", "contractData", "emaid", "pcid", "signedcontractdata", "setdefault"),
        *("event", "endpoints", "deliveries", "secret", "ping", "refusals"),
    )
}
# OPCP writes the same words in another case, so its paths, which begin with the version, have their own list.
_OPCP_SEGMENTS: Final = {
    segment.lower(): segment
    for segment in (
        *("v1", "ccp", "root", "rootCerts", "ctl", "signedContractData", "lookupContract", "provideSignedContractData"),
        *("default", "webhook", "endpoints", "deliveries", "secret", "ping"),
    )
}
_EST_SEGMENTS: Final = {name: name for name in (".well-known", "est", "simpleenroll", "simplereenroll", "cacerts")}
_OCPP_SEGMENTS: Final = {segment.lower(): segment for segment in ("ocpp", "v1", "get15118EVCertificate")}
_DIALECTS: Final = {
    "opnc": _SEGMENTS,
    "v1": _OPCP_SEGMENTS,
    "ocpp": _OCPP_SEGMENTS,
    ".well-known": _EST_SEGMENTS,
}
_KNOWN_SEGMENTS: Final = frozenset().union(*_DIALECTS.values())
"""In lower case. Some are as long as an id."""
# Responses are data: browsers must not cache, sniff, frame or execute them.
_HEADERS: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
]
_TLS_HEADERS: Final = [*_HEADERS, (b"strict-transport-security", b"max-age=31536000")]


@dataclass(slots=True)
class Trace:
    """The facts about a request for log, metrics and audit trail.

    caller: a client id, proven if `authenticated`, otherwise claimed. registered: whether a party has this client id;
    this proves nothing, but shows that the text is not the id of a driver or vehicle. emaid, pcid: ids in the request,
    if readable. address: of the client, if known. failure: why the request was refused. code: of the refusal, if it is
    not that of the failure or of the status. edition, message: of a vehicle's request, in Base64.
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
    code: ErrorCode | None = None
    edition: str | None = None
    message: str | None = None

    def code_of(self, status: int) -> ErrorCode | None:
        """The code of the refusal that a response with this status is; None if it is none.

        A delivery that carries the negative message is a refusal with the status 200.
        """
        if self.failure is not None:
            return self.code or self.failure.code
        return None if status < 400 else self.code or code_of_status(status)

    @property
    def owner(self) -> str | None:
        """Provider id or WMI of the ids in the request, which is not personal data."""
        if self.emaid is not None:
            return self.emaid.provider
        return self.pcid.wmi if self.pcid is not None else None


def trace_of(scope: Scope) -> Trace:
    """Return the trace of a request."""
    trace: Trace = scope[_KEY]
    return trace


class TraceMiddleware:
    """ASGI middleware, the outermost."""

    def __init__(
        self,
        app: ASGIApp,
        pseudonyms: Pseudonyms,
        refusals: AccessDenialRecorder,
        metrics: Metrics,
        trace_ids: Iterator[str] | None = None,
        deliveries: RefusedDeliveries | None = None,
        *,
        has_documentation: bool = False,
    ) -> None:
        """trace_ids: an id for each request; None for random ones. deliveries: records refused deliveries.

        has_documentation: the pool serves its documentation, and a refusal links to the page of its code.
        """
        self._app = app
        self._pseudonyms = pseudonyms
        self._refusals = refusals
        self._metrics = metrics
        self._deliveries = deliveries
        self._trace_ids = trace_ids or _trace_ids()
        self._code_headers = {
            code: [code_header(code), *([(b"link", code_link(code))] if has_documentation else [])]
            for code in ErrorCode
        }

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
                if (code := trace.code_of(status)) is not None:
                    message["headers"] += self._code_headers[code]
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
            if status in _DENIED:
                self._refusals.record(_denial(trace, status, self._pseudonyms))
            self._log_outcome(scope, trace, status, time.perf_counter() - began, crash)
            # The error's frames refer to the scope, and it to this trace: a cycle for the garbage collector.
            trace.failure = None

    def _log_outcome(
        self, scope: Scope, trace: Trace, status: int, duration: float, crash: BaseException | None
    ) -> None:
        outcome = "crashed" if crash is not None else _outcome(trace, status)
        code = trace.code_of(status)
        self._metrics.request(trace.operation, status, outcome, duration)
        dialect = dialect_of(scope["path"])
        self._metrics.counts.add(dialect, trace.operation, code)
        if code is not None and self._deliveries is not None and trace.authenticated and trace.operation is not None:
            self._deliveries.record(
                RefusedRequest(
                    trace.id,
                    trace.caller or "",
                    trace.operation,
                    dialect.value,
                    status,
                    code,
                    trace.edition,
                    trace.pcid,
                    trace.emaid,
                    trace.message,
                    trace.failure,
                )
            )
        # Probes come every few seconds. Those that fail are logged as all requests are.
        quiet = status < 400 and (scope["path"] == "/metrics" or scope["path"].startswith("/health"))
        if crash is None and not _log.is_enabled_for(logging.DEBUG if quiet else logging.INFO):
            return
        event: dict[str, Any] = {
            "trace_id": trace.id,
            "method": scope["method"],
            "operation": trace.operation,
            **self.parties_and_ids(trace),
            "status": status,
            "outcome": outcome,
            **({} if code is None else {"code": code.value}),
            "ms": round(duration * 1000, 2),
        }
        if status == 404:
            event |= {"path": self._shown_path(scope), "address": trace.address}
        if crash is not None:
            _log.error("request handled", **event, exc_info=crash)
        elif trace.failure is not None:
            cause = trace.failure.__cause__
            # Only the type of the cause: a validator's message quotes the body.
            details = {"reason": str(trace.failure), "cause": type(cause).__name__ if cause else None}
            _log.info("request handled", **event, **details)
        elif quiet:
            _log.debug("request handled", **event)
        else:
            _log.info("request handled", **event)

    def _shown_path(self, scope: Scope) -> str:
        """The path of a request for the log: cut off, with ids as the settings want them, never with a query."""
        path = str(scope["path"]).partition("?")[0][: 4 * _SHOWN_PATH]  # An encoded "?" may begin a query with secrets.
        shown = []
        for known, segments in groupby(path.split("/"), lambda segment: segment.lower() in _KNOWN_SEGMENTS):
            text = "/".join(segments)
            shown.append(text if known else self._pseudonyms.pseudonymise_text(text) or "")
        return "/".join(shown)[:_SHOWN_PATH]

    def parties_and_ids(self, trace: Trace) -> dict[str, str | None]:
        """Caller, owner and ids of a request as logs and traces may have them."""
        return {
            "caller": trace.caller if _is_client_id(trace) else self._pseudonyms.pseudonymise_text(trace.caller),
            "owner": trace.owner,
            **self._ids(trace),
        }

    def _ids(self, trace: Trace) -> dict[str, str]:
        named = {"emaid": self._pseudonyms.pseudonymise(trace.emaid), "pcid": self._pseudonyms.pseudonymise(trace.pcid)}
        return {kind: shown for kind, shown in named.items() if shown is not None}


def _trace_ids() -> Iterator[str]:
    """Yield random UUIDs (RFC 9562 clause 5.4), reading random bytes for many at a time."""
    while True:
        digits = os.urandom(4096).hex()
        for start in range(0, len(digits), 32):
            one = digits[start : start + 32]
            variant = "89ab"[int(one[16], 16) & 3]
            yield f"{one[:8]}-{one[8:12]}-4{one[13:16]}-{variant}{one[17:20]}-{one[20:]}"


_SHOWN_PATH: Final = 200  # Characters.
_DENIED: Final = frozenset({401, 403, 429})
_CLAIM_LENGTH: Final = 64


def _is_client_id(trace: Trace) -> bool:
    """Return whether the caller is certainly a client id. Any other text may be an EMAID or a PCID."""
    return trace.authenticated or trace.registered


def _claimed(trace: Trace, pseudonyms: Pseudonyms) -> str | None:
    if trace.authenticated or trace.caller is None:
        return None
    return (trace.caller if trace.registered else pseudonyms.replace_ids(trace.caller))[:_CLAIM_LENGTH]


def _denial(trace: Trace, status: int, pseudonyms: Pseudonyms) -> Entry:
    """Return the audit entry of a denied access, with ids in clear text except in claimed names.

    An erasure finds ids in canonical form only. So error messages, which contain ids in any form, are left out, and
    ids in claimed names are pseudonymised.
    """
    details = {
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
        {name: value for name, value in details.items() if value is not None},
        f"{_outcome(trace, status)} {status}",
        trace.id,
    )


def _outcome(trace: Trace, status: int) -> str:
    if trace.failure is not None:
        return trace.failure.outcome
    if not status:  # The request was cancelled: at the end of a worker, or because its client went away.
        return "unanswered"
    return "ok" if status < 400 else "refused" if status < 500 else "unavailable" if status == 503 else "crashed"


def _read_path(method: str, path: str, raw: bytes) -> tuple[str, EMAID | None, PCID | None]:
    """Return the path in canonical form and the ids in it."""
    path = _canonical(_path(path, raw))
    return path, *_ids_in(method, path)


_read_short_path: Final = lru_cache(1024)(_read_path)
"""Most requests use few paths. Long paths are not cached: a thousand of them would take 12 MiB."""
_SHORT_PATH: Final = 160  # Bytes as received. No path of the API with its ids is longer.


def _path(path: str, raw: bytes) -> str:
    """Return the decoded path. An encoded slash stays encoded: it is part of an id, which is then invalid."""
    if b"%2f" not in raw.lower():
        return path
    return "/".join(unquote(segment).replace("/", "%2F") for segment in raw.decode("latin-1").split("/"))


def _canonical(path: str) -> str:
    """Return the path of an operation in canonical case; other paths unchanged, since they may contain client ids."""
    segments = path.split("/")
    known = _DIALECTS.get(segments[1].lower()) if len(segments) > 1 else None
    return path if known is None else "/".join(known.get(segment.lower(), segment) for segment in segments)


def _ids_in(method: str, path: str) -> tuple[EMAID | None, PCID | None]:
    """Return the ids in a path of the API, for the log and the audit trail."""
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
    body = error_body(INTERNAL_ERROR, trace.id)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})
