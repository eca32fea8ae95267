"""Load shedding: the response to refused requests, and its log events.

A refused request costs some ten microseconds, most of them in the operating system for receiving and sending; a served
one costs sixty times as much. So the response is the same bytes for all requests within a second. Its trace id is that
of the overload: it finds the log events `overload began` and `overload ended`, which count the refused requests by
reason. There is no log event for each request.

A vehicle request that arrives while its queue is full is recognised by its first bytes and not parsed. This applies
only to requests that arrive whole and that no two readers could understand differently (RFC 9112 clause 11.2).
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from ccp.errors.codes import ErrorCode
from ccp.server.http.admission import Admission
from ccp.server.http.error_body import OVERLOADED, code_header, error_body
from ccp.server.http.fair_queue import Reason
from ccp.server.metrics import Metrics

_log = structlog.get_logger("ccp.server.http.overload")

RETRY_AFTER: Final = 2
VEHICLE_REQUEST: Final = b"POST /opnc/v1/ccp/signedcontractdata HTTP/1.1\r\n"

_ENDED_AFTER: Final = 5.0
_STILL_AFTER: Final = 60.0
_MAX_HEAD: Final = 8192
_MAX_HEADS: Final = 1024
_MAX_HEAD_KEPT: Final = 2048


class Head(NamedTuple):
    """The parts of a request head that decide about refusal. length: of head and body, in bytes."""

    length: int
    authorization: bytes


def read_head(head: bytes) -> Head | None:
    """Read the head of a vehicle request. Returns None if the request has to be parsed.

    head: from the request line to the empty line. The only accepted framing is one Content-Length.
    """
    lower = head.lower()
    fields = lower.split(b"\r\n")
    if lower.count(b"\n") != len(fields) - 1 or lower.count(b"\r") != len(fields) - 1:
        return None
    length, authorization = -1, b""
    position = len(fields[0]) + 2
    for field in fields[1:-2]:
        name, colon, value = field.partition(b":")
        if not colon or not name.replace(b"-", b"").isalnum():
            return None
        if name == b"content-length":
            digits = value.strip(b" \t")
            if length >= 0 or not digits.isdigit() or len(digits) > 7:
                return None
            length = int(digits)
        elif name == b"authorization":
            if authorization:
                return None
            authorization = head[position + len(name) + 1 : position + len(field)].strip(b" \t")
        elif name in _FRAMING or (name == b"connection" and value.strip(b" \t") != b"keep-alive"):
            return None
        position += len(field) + 2
    return None if length < 0 else Head(len(head) + length, authorization)


_FRAMING: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"trailer", b"te"})


class LoadShedder:
    """The response to refused requests and the log events of an overload, for one worker."""

    def __init__(self, admission: Admission, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._admission = admission
        self._metrics = metrics
        self._clock = clock
        self._heads: dict[bytes, Head | None] = {}
        self._responses: dict[tuple[bool, bool], bytes] = {}
        self._default_headers: object = None
        self._reported: Counter[tuple[str, str]] = Counter()
        self._before: Counter[tuple[str, str]] = Counter()
        self._trace_id = str(uuid.uuid4())
        self._began: float | None = None
        self._logged_at = self._last = 0.0

    def try_shed(self, data: bytes, address: object) -> bool:
        """Return whether the data is one whole vehicle request for which there is no room. Then it is counted."""
        end = data.find(b"\r\n\r\n", 0, _MAX_HEAD) + 4
        head = data[:end]
        try:
            read = self._heads[head]
        except KeyError:
            read = read_head(head) if end > 4 else None
            if len(head) <= _MAX_HEAD_KEPT:
                if len(self._heads) >= _MAX_HEADS:
                    self._heads.clear()
                self._heads[head] = read
        if read is None or read.length != len(data):
            return False
        return self._admission.try_shed(read.authorization, address)

    def response(
        self, default_headers: list[tuple[bytes, bytes]], *, secured: bool = False, close: bool = False
    ) -> bytes:
        """Return a whole response. default_headers: the server's; a new list object whenever they change."""
        if default_headers is not self._default_headers:
            self._default_headers = default_headers
            self._responses.clear()
        found = self._responses.get((secured, close))
        if found is None:
            found = self._responses[secured, close] = self._build(default_headers, secured, close)
        return found

    def _build(self, default_headers: list[tuple[bytes, bytes]], secured: bool, close: bool) -> bytes:
        body = error_body(OVERLOADED, self._trace_id)
        headers = [
            *default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(RETRY_AFTER).encode()),
            (b"x-trace-id", self._trace_id.encode()),
            code_header(ErrorCode.OVERLOADED),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-store"),
            (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
            (b"referrer-policy", b"no-referrer"),
        ]
        if secured:
            headers.append((b"strict-transport-security", b"max-age=31536000"))
        if close:
            headers.append((b"connection", b"close"))
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        return b"HTTP/1.1 503 Service Unavailable\r\n" + lines + b"\r\n" + body

    def report(self) -> None:
        """Count refused requests, and log the begin and the end of an overload. Called every half second."""
        now, admission = self._clock(), self._admission
        admission.settle()
        shed = Counter(admission.shed)
        recent = shed - self._reported
        self._reported = shed
        for (name, reason), count in recent.items():
            self._metrics.requests_shed(name, reason, count)
        recent = Counter({key: count for key, count in recent.items() if key[1] != Reason.CLIENT_GONE})
        for lane in admission.lanes:
            self._metrics.requests_admitted(lane.name, lane.in_flight, len(lane.queue), lane.delay)
            lane.delay = 0.0
        if recent:
            self._last = now
            if self._began is None:
                self._began = self._logged_at = now
                self._before = shed - recent
                _log.warning("overload began", trace_id=self._trace_id, **self._counts(recent))
            elif now - self._logged_at >= _STILL_AFTER:
                self._logged_at = now
                _log.warning("overload continues", **self._so_far(now))
        elif self._began is not None and now - self._last >= _ENDED_AFTER:
            _log.warning("overload ended", **self._so_far(self._last))
            self._began = None
            self._trace_id = str(uuid.uuid4())
            self._responses.clear()

    def _so_far(self, until: float) -> dict[str, object]:
        seconds = round(until - (self._began or until), 1)
        return {"trace_id": self._trace_id, "seconds": seconds, **self._counts(self._reported - self._before)}

    @staticmethod
    def _counts(shed: Counter[tuple[str, str]]) -> dict[str, object]:
        return {"shed": shed.total(), "by_class": {f"{lane} {reason}": count for (lane, reason), count in shed.items()}}
