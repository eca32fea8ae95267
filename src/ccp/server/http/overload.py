"""What is said of shed requests: one answer, made beforehand, and one log event for an overload, not for each request.

A shed request costs some ten microseconds, most of them the system's for receiving and sending; a served one costs
sixty times as much. So the answer is the same bytes for all within a second, and its trace id is that of the overload:
it finds the log events `overload began` and `overload ended`, which say how many were shed and why.

A vehicle's request that comes while its queue is full is recognised by its first bytes and not parsed. This is done for
requests alone that arrive whole and that no two readers could understand differently (RFC 9112 clause 11.2).
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from ccp.server.http.admission import Admission, Reason
from ccp.server.http.request_cycle import OVERLOADED, error_body
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
    """What of a head decides how its request is shed. length: of head and body, bytes."""

    length: int
    authorization: bytes


def read_head(head: bytes) -> Head | None:
    """Read the head of a vehicle's request; None where the parser has to read it.

    head: from the request line to the empty line. The only framing that is taken is one Content-Length.
    """
    lower = head.lower()
    fields = lower.split(b"\r\n")
    if lower.count(b"\n") != len(fields) - 1 or lower.count(b"\r") != len(fields) - 1:
        return None
    length, authorization = -1, b""
    at = len(fields[0]) + 2
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
            authorization = head[at + len(name) + 1 : at + len(field)].strip(b" \t")
        elif name in _FRAMING or (name == b"connection" and value.strip(b" \t") != b"keep-alive"):
            return None
        at += len(field) + 2
    return None if length < 0 else Head(len(head) + length, authorization)


_FRAMING: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"trailer", b"te"})


class LoadShedder:
    """The answer to shed requests, and what is told of them. One for each worker."""

    def __init__(self, admission: Admission, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._admission = admission
        self._metrics = metrics
        self._clock = clock
        self._heads: dict[bytes, Head | None] = {}
        self._answers: dict[tuple[bool, bool], bytes] = {}
        self._date: object = None
        self._reported: Counter[tuple[str, str]] = Counter()
        self._before: Counter[tuple[str, str]] = Counter()
        self._trace_id = str(uuid.uuid4())
        self._began: float | None = None
        self._told = self._last = 0.0

    def sheds(self, data: bytes, address: object) -> bool:
        """Whether this is one whole request of a vehicle for which there is no room now. It is counted then."""
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
        return self._admission.sheds(read.authorization, address)

    def answer(
        self, default_headers: list[tuple[bytes, bytes]], *, secured: bool = False, close: bool = False
    ) -> bytes:
        """A whole response. default_headers: the server's, another list whenever they change."""
        if default_headers is not self._date:
            self._date = default_headers
            self._answers.clear()
        found = self._answers.get((secured, close))
        if found is None:
            found = self._answers[secured, close] = self._made(default_headers, secured, close)
        return found

    def _made(self, default_headers: list[tuple[bytes, bytes]], secured: bool, close: bool) -> bytes:
        body = error_body(OVERLOADED, self._trace_id)
        headers = [
            *default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(RETRY_AFTER).encode()),
            (b"x-trace-id", self._trace_id.encode()),
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
        """Called every half second: count what was shed, and log the begin and the end of an overload."""
        now, admission = self._clock(), self._admission
        admission.settle()
        shed = Counter(admission.shed)
        news = shed - self._reported
        self._reported = shed
        for (name, reason), count in news.items():
            self._metrics.requests_shed(name, reason, count)
        news = Counter({key: count for key, count in news.items() if key[1] != Reason.CLIENT_GONE})
        for lane in admission.lanes:
            self._metrics.requests_admitted(lane.name, lane.in_flight, len(lane.queue), lane.delay)
            lane.delay = 0.0
        if news:
            self._last = now
            if self._began is None:
                self._began = self._told = now
                self._before = shed - news
                _log.warning("overload began", trace_id=self._trace_id, **self._counts(news))
            elif now - self._told >= _STILL_AFTER:
                self._told = now
                _log.warning("overload continues", **self._so_far(now))
        elif self._began is not None and now - self._last >= _ENDED_AFTER:
            _log.warning("overload ended", **self._so_far(self._last))
            self._began = None
            self._trace_id = str(uuid.uuid4())
            self._answers.clear()

    def _so_far(self, until: float) -> dict[str, object]:
        seconds = round(until - (self._began or until), 1)
        return {"trace_id": self._trace_id, "seconds": seconds, **self._counts(self._reported - self._before)}

    @staticmethod
    def _counts(shed: Counter[tuple[str, str]]) -> dict[str, object]:
        return {"shed": shed.total(), "by_class": {f"{lane} {reason}": count for (lane, reason), count in shed.items()}}
