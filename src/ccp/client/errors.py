"""What can go wrong with a call.

    ClientError
    ├── NoAnswerError             nothing came back in time; whether it was done is not known, unless it says so
    ├── MalformedAnswerError      something came back that is not the API's: not JSON, too large, another message
    ├── TokenRefusedError         the token endpoint does not accept the credentials
    └── AnsweredError             an error status, with the pool's own sentences
        ├── BadRequestError           400
        ├── NotAuthenticatedError     401, also with a fresh token
        ├── NotAuthorisedError        403
        ├── NotFoundError             404
        ├── TooLargeError             413
        ├── TooManyRequestsError      429
        ├── UpstreamFailedError       502
        └── UnavailableError          503

Each has the sentences in `messages`, and `status` and `trace_id` where there was an answer. The trace id is what the
pool's operator needs to find the request in the log.
"""

from __future__ import annotations

from typing import Final

from ccp.errors import CCPError


class ClientError(CCPError):
    """status: of the answer, None without one. trace_id: the pool's name for the request, if it gave one."""

    code = "client"

    def __init__(self, *messages: str, status: int | None = None, trace_id: str | None = None) -> None:
        super().__init__(*messages)
        self.status = status
        self.trace_id = trace_id

    def __str__(self) -> str:
        told = super().__str__()
        return told if self.trace_id is None else f"{told} (trace id {self.trace_id})"


class NoAnswerError(ClientError):
    """outcome_unknown: False where the request surely never reached the pool."""

    code = "no_answer"

    def __init__(self, *messages: str, outcome_unknown: bool) -> None:
        super().__init__(*messages)
        self.outcome_unknown = outcome_unknown


class MalformedAnswerError(ClientError):
    code = "malformed_answer"


class TokenRefusedError(ClientError):
    """error: the code of RFC 6749 clause 5.2, such as invalid_client; empty if there was none."""

    code = "token_refused"

    def __init__(self, *messages: str, status: int, trace_id: str | None, error: str) -> None:
        super().__init__(*messages, status=status, trace_id=trace_id)
        self.error = error


class AnsweredError(ClientError):
    """retry_after: seconds that the pool asks to wait, None if it does not say."""

    code = "answered"

    def __init__(self, *messages: str, status: int, trace_id: str | None, retry_after: float | None = None) -> None:
        super().__init__(*messages, status=status, trace_id=trace_id)
        self.retry_after = retry_after


class BadRequestError(AnsweredError):
    code = "bad_request"


class NotAuthenticatedError(AnsweredError):
    code = "not_authenticated"


class NotAuthorisedError(AnsweredError):
    code = "not_authorised"


class NotFoundError(AnsweredError):
    code = "not_found"


class TooLargeError(AnsweredError):
    code = "too_large"


class TooManyRequestsError(AnsweredError):
    code = "too_many_requests"


class UpstreamFailedError(AnsweredError):
    code = "upstream_failed"


class UnavailableError(AnsweredError):
    code = "unavailable"


BY_STATUS: Final[dict[int, type[AnsweredError]]] = {
    400: BadRequestError,
    401: NotAuthenticatedError,
    403: NotAuthorisedError,
    404: NotFoundError,
    413: TooLargeError,
    429: TooManyRequestsError,
    502: UpstreamFailedError,
    503: UnavailableError,
}
"""Every other status is an AnsweredError itself."""
