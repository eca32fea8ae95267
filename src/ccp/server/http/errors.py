"""The table that maps errors to HTTP status codes, and error responses in the API's shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ccp import errors
from ccp.schemas.error_messages import error_messages
from ccp.schemas.field_errors import field_error
from ccp.server.domain.authorization import Operation
from ccp.server.http import paths
from ccp.server.http.error_body import INTERNAL_ERROR
from ccp.server.http.middleware.tracing import trace_of

STATUS: Final[tuple[tuple[type[errors.CCPError], int], ...]] = (
    (errors.NotAuthenticated, 401),
    (errors.NotAuthorised, 403),
    (errors.NotFound, 404),
    (errors.PreconditionFailed, 412),
    (errors.TooManyRequests, 429),
    (errors.Unavailable, 503),
    (errors.UpstreamError, 502),
    (errors.Conflict, 400),
    (errors.LimitExceeded, 400),
    (errors.InputError, 400),
    (errors.VerificationError, 400),
    (errors.CCPError, 500),
)
"""HTTP status by class of the error; the first matching row counts."""

WITHOUT_404: Final = frozenset({Operation.SET_DEFAULT})
"""Operations whose published description has no 404. They answer 400 for unknown ids."""

_RETRY_AFTER: Final = "2"
_NOT_FOUND: Final = "There is nothing at this path."


def status_of(error: errors.CCPError) -> int:
    """Return the HTTP status of an error."""
    return next(status for kind, status in STATUS if isinstance(error, kind))


def error_response(
    request: Request, status: int, messages: Iterable[str], headers: dict[str, str] | None = None
) -> Response:
    """Return an error response in the API's shape."""
    body = {"errorMessages": list(dict.fromkeys(messages)), "traceId": trace_of(request.scope).id}
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


async def handle_ccp_error(request: Request, error: Exception) -> Response:
    """Answer a CCPError by the table."""
    assert isinstance(error, errors.CCPError), "registered for these only"
    status = status_of(error)
    trace = trace_of(request.scope)
    trace.failure = error
    if status == 404 and trace.operation in WITHOUT_404:
        status = 400
    headers = retry_after(error)
    if status == 401:
        headers["WWW-Authenticate"] = _challenge(request)
    return error_response(request, status, error_messages(error), headers)


def retry_after(error: errors.CCPError) -> dict[str, str]:
    """Return the header Retry-After for a temporary error; no header for other errors."""
    if status_of(error) not in (429, 503):
        return {}
    return {"Retry-After": str(getattr(error, "retry_after", None) or _RETRY_AFTER)}


def negative_metadata(error: errors.CCPError, always_exi: bool) -> tuple[str, dict[str, str]]:
    """Return `metaData` and headers to send with a vehicle's negative message.

    Without `always_exi`, raises the error to answer instead of the message.
    """
    headers = retry_after(error)
    if always_exi:
        return f"temporary: {error}" if headers else str(error), headers
    if headers:
        raise error
    hidden = errors.NotFound(*error_messages(error))
    raise errors.with_code_of(error, hidden) from error


def _challenge(request: Request) -> str:
    """Return WWW-Authenticate. Source: RFC 6750 clause 3.1: no error code if the request has no token."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return 'Bearer error="invalid_token"' if scheme.lower() == "bearer" and token.strip() else "Bearer"


async def handle_validation_error(request: Request, error: Exception) -> Response:
    """Answer 400 for parameters that FastAPI rejects."""
    assert isinstance(error, RequestValidationError), "registered for these only"
    return await handle_ccp_error(request, field_error(error.errors()))


async def handle_crash(request: Request, error: Exception) -> Response:
    """Answer 500 for an unexpected exception. The trace middleware logs it."""
    return error_response(request, 500, (INTERNAL_ERROR,))


async def handle_http_exception(request: Request, error: Exception) -> Response:
    """Answer an HTTPException: unknown paths and methods, bodies that are too large."""
    assert isinstance(error, HTTPException), "registered for these only"
    headers, message = dict(error.headers or {}), error.detail
    if error.status_code == 404:
        path = paths.known_path_without_slash(request.scope)
        message = _NOT_FOUND if path is None else f"There is nothing at this path; the right path is {path}."
    elif error.status_code == 405:
        methods = paths.allowed_methods(request.scope) or headers["Allow"].split(", ")
        message = f"Method not allowed; use {_alternatives(methods)}."
        headers["Allow"] = ", ".join(methods)
    return error_response(request, error.status_code, (message,), headers)


def _alternatives(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
