"""The one table from errors to answers, and the shape of an error answer."""

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
from ccp.server.http.middleware.tracing import INTERNAL_ERROR, trace_of

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
"""HTTP status by kind of error: the first row that fits."""

WITHOUT_404: Final = frozenset({Operation.SET_DEFAULT})
"""Operations whose published description knows no 404; what is unknown is 400 there."""

_RETRY_AFTER: Final = "2"


def status_of(error: errors.CCPError) -> int:
    return next(status for kind, status in STATUS if isinstance(error, kind))


def answer(request: Request, status: int, messages: Iterable[str], headers: dict[str, str] | None = None) -> Response:
    """An error in the API's shape."""
    body = {"errorMessages": list(dict.fromkeys(messages)), "traceId": trace_of(request.scope).id}
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


async def handle_ccp_error(request: Request, error: Exception) -> Response:
    """Answer one of our errors."""
    assert isinstance(error, errors.CCPError), "registered for these only"
    status = status_of(error)
    trace = trace_of(request.scope)
    trace.failure = error
    if status == 404 and trace.operation in WITHOUT_404:
        status = 400
    headers = retry_after(error)
    if status == 401:
        headers["WWW-Authenticate"] = _challenge(request)
    return answer(request, status, error_messages(error), headers)


def retry_after(error: errors.CCPError) -> dict[str, str]:
    """The header of an answer to something that may be tried again; nothing for every other error."""
    if status_of(error) not in (429, 503):
        return {}
    return {"Retry-After": str(getattr(error, "retry_after", None) or _RETRY_AFTER)}


def negative_metadata(error: errors.CCPError, always_exi: bool) -> tuple[str, dict[str, str]]:
    """`metaData` and headers that go with a vehicle's negative message.

    Without `always_exi` raises the error that is answered in its place.
    """
    again = retry_after(error)
    if always_exi:
        return f"temporary: {error}" if again else str(error), again
    if again:
        raise error
    raise errors.NotFound(*error_messages(error)) from error


def _challenge(request: Request) -> str:
    """Source: RFC 6750 clause 3.1: no error code where no token was given."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return 'Bearer error="invalid_token"' if scheme.lower() == "bearer" and token.strip() else "Bearer"


async def handle_validation_error(request: Request, error: Exception) -> Response:
    """Answer what FastAPI found wrong with parameters: always 400 here."""
    assert isinstance(error, RequestValidationError), "registered for these only"
    return await handle_ccp_error(request, field_error(error.errors()))


async def handle_crash(request: Request, error: Exception) -> Response:
    """Answer a mistake of ours. The trace tells it."""
    return answer(request, 500, (INTERNAL_ERROR,))


async def handle_http_exception(request: Request, error: Exception) -> Response:
    """Answer what the router refuses: unknown paths and methods, bodies that are too large."""
    assert isinstance(error, HTTPException), "registered for these only"
    headers, sentence = dict(error.headers or {}), error.detail
    if error.status_code == 404:
        right = paths.known_path_without_slash(request.scope)
        sentence = _NOTHING if right is None else f"There is nothing at this path; the right path is {right}."
    elif error.status_code == 405:
        sentence = "This path does not know the method."
        headers["Allow"] = ", ".join(paths.allowed_methods(request.scope) or headers["Allow"].split(", "))
    return answer(request, error.status_code, (sentence,), headers)


_NOTHING: Final = "There is nothing at this path."
