"""Error responses that are written without the framework: the body, and whole responses as bytes."""

from __future__ import annotations

from typing import Final

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from ccp.errors import codes as error_codes
from ccp.errors.codes import ErrorCode, code_of_status

INTERNAL_ERROR: Final = "Something went wrong here; the trace id finds it in the log."
OVERLOADED: Final = "The pool has more requests than it can answer in time. Try again in a few seconds."

_HEADER: Final = error_codes.HEADER.lower().encode()
_RETRY_AFTER: Final = b"2"


def error_body(message: str, trace_id: str) -> bytes:
    """Return the JSON body of an error in the API's shape."""
    return orjson.dumps({"errorMessages": [message], "traceId": trace_id})


def code_header(code: ErrorCode) -> tuple[bytes, bytes]:
    """Return the header with the stable code of a refusal."""
    return _HEADER, code.encode()


def error_response(status: int, message: str, trace_id: str, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return a whole error response of the HTTP layer that announces the end of the connection."""
    body = error_body(message, trace_id)
    headers = [
        *default_headers,
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"x-trace-id", trace_id.encode()),
        code_header(code_of_status(status)),
    ]
    if status in (429, 503):
        headers.append((b"retry-after", _RETRY_AFTER))
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    return STATUS_LINE[status] + lines + b"\r\n" + body


def parser_message(exc: httptools.HttpParserError) -> str:
    """Return the parser's message, which quotes nothing of the request unless it is about the path."""
    if isinstance(exc, httptools.HttpParserInvalidURLError):
        return "the path is not valid"
    message = str(exc).replace("`", "")
    return message[:1].lower() + message[1:] if message else "it cannot be read"
