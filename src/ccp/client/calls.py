"""A request with the reader of its response, and what builds both. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, TypeVar
from urllib.parse import urlencode

import orjson

from ccp.client.responses import HttpResponse
from ccp.schemas.common import Routing

T = TypeVar("T")

_OK: Final = frozenset({200})


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One operation, ready to be sent.

    Almost every call may be sent again when its outcome is unknown: it either reads, or it sets a state that a second
    request does not change. A delivery is a POST and reads.

    parse: reads the response of a success. content: body. success: the statuses of a success. timeout: seconds for the
    whole call, None for the client's. not_found_after_retry: the result if an attempt with an unknown outcome is
    followed by a 404; None if that 404 is an error as usual. repeatable: False for a call that is not sent again when
    its outcome is unknown.
    """

    method: str
    path: str
    parse: Callable[[HttpResponse], T]
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""
    success: frozenset[int] = _OK
    timeout: float | None = None
    not_found_after_retry: T | None = None
    repeatable: bool = True


class CallBuilder:
    """Builds the calls of one dialect."""

    base: ClassVar[str]
    """Path in front of every operation's."""

    def __init__(self, routing: Routing) -> None:
        """Raises FieldError for a routing that no header can carry."""
        self._routing_headers = routing.headers()

    def _call(
        self,
        method: str,
        path: str,
        parse: Callable[[HttpResponse], T],
        routing: Routing | None,
        timeout: float | None,
        *,
        base: str | None = None,
        query: Mapping[str, str | None] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        success: frozenset[int] = _OK,
        not_found_after_retry: T | None = None,
        repeatable: bool = True,
    ) -> Call[T]:
        parameters = urlencode({name: value for name, value in (query or {}).items() if value is not None})
        content = b"" if body is None else orjson.dumps({k: v for k, v in body.items() if v is not None})
        sent = {**(self._routing_headers if routing is None else routing.headers()), **(headers or {})}
        if body is not None:
            sent["Content-Type"] = "application/json"
        target = (self.base if base is None else base) + path + (f"?{parameters}" if parameters else "")
        return Call(method, target, parse, sent, content, success, timeout, not_found_after_retry, repeatable)
