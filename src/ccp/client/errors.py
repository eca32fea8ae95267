"""The errors of the client library.

    ClientError
    ├── NoResponseError           no response; `outcome_unknown` says whether the pool may have acted
    │   ├── TimedOutError             no connection, no TLS handshake, or no response in time
    │   ├── NameResolutionError       the host name is not found, or the name server does not answer
    │   ├── RefusedConnectionError    nothing listens on the port
    │   ├── TLSRequiredError          plain HTTP was sent to a port that speaks TLS
    │   └── TLSError                  the TLS handshake failed
    │       ├── UntrustedCertificateError   the server's certificate is of no trusted CA, or not acceptable
    │       ├── ExpiredCertificateError     the server's certificate has expired, or is not valid yet
    │       ├── NameMismatchError           the server's certificate is for another host
    │       ├── ClientCertificateError      the server does not accept the client's certificate, or requires one
    │       └── PlainHTTPError              https was sent to a port that does not speak TLS
    ├── MalformedResponseError    a response that is not the API's: not JSON, too large, another message
    ├── TokenRefusedError         the token endpoint rejects the credentials
    └── StatusError               an error status, with the pool's own sentences
        ├── BadRequestError           400
        ├── NotAuthenticatedError     401, also with a fresh token
        ├── NotAuthorisedError        403
        ├── NotFoundError             404
        ├── TooLargeError             413
        ├── TooManyRequestsError      429
        ├── UpstreamFailedError       502
        └── UnavailableError          503

Each has its sentences in `messages`; NoResponseError has `host` and `port`; the others have `status` and `trace_id` of
the response. With the trace id the pool's operator finds the request in the log.
"""

from __future__ import annotations

from typing import ClassVar, Final

from ccp.errors import CCPError


class ClientError(CCPError):
    """Base of every error of a call.

    status: HTTP status of the response, None without a response. trace_id: the pool's id of the request, if it sent
    one.
    """

    outcome = "client"

    def __init__(self, *messages: str, status: int | None = None, trace_id: str | None = None) -> None:
        super().__init__(*messages)
        self.status = status
        self.trace_id = trace_id

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.trace_id is None else f"{text} (trace id {self.trace_id})"


class NoResponseError(ClientError):
    """There was no response in time.

    outcome_unknown: False if no attempt can have reached the pool. host, port: of the server, or of a proxy that cannot
    be reached; None if no request was made. permanent: whether a retry fails in the same way until a configuration
    changes.
    """

    outcome = "no_answer"
    permanent: ClassVar[bool] = False

    def __init__(self, *messages: str, outcome_unknown: bool, host: str | None = None, port: int | None = None) -> None:
        super().__init__(*messages)
        self.outcome_unknown = outcome_unknown
        self.host = host
        self.port = port


class TimedOutError(NoResponseError):
    """The connection, the TLS handshake or the response took too long."""

    outcome = "timed_out"


class NameResolutionError(NoResponseError):
    """The host name is not found, or the name server does not answer."""

    outcome = "name_resolution"


class RefusedConnectionError(NoResponseError):
    """Nothing listens on the port."""

    outcome = "refused_connection"


class TLSRequiredError(NoResponseError):
    """Plain HTTP was sent to a port that speaks TLS: the URL has to begin with https."""

    outcome = "tls_required"
    permanent = True


class TLSError(NoResponseError):
    """The TLS handshake failed."""

    outcome = "tls"


class UntrustedCertificateError(TLSError):
    """The server's certificate is of no trusted CA, or not acceptable."""

    outcome = "untrusted_certificate"
    permanent = True


class ExpiredCertificateError(TLSError):
    """The server's certificate has expired, or is not valid yet."""

    outcome = "expired_certificate"
    permanent = True


class NameMismatchError(TLSError):
    """The server's certificate is for another host."""

    outcome = "name_mismatch"
    permanent = True


class ClientCertificateError(TLSError):
    """The server does not accept the client's certificate, or requires one."""

    outcome = "client_certificate"
    permanent = True


class PlainHTTPError(TLSError):
    """https was sent to a port that does not speak TLS, such as one for plain HTTP."""

    outcome = "plain_http"
    permanent = True


class MalformedResponseError(ClientError):
    """The response does not have the API's format, or exceeds the limits of the client."""

    outcome = "malformed_answer"


class TokenRefusedError(ClientError):
    """The token endpoint rejects the credentials.

    error: the code of RFC 6749 clause 5.2, such as invalid_client; empty if the response has none.
    """

    outcome = "token_refused"

    def __init__(self, *messages: str, status: int, trace_id: str | None, error: str) -> None:
        super().__init__(*messages, status=status, trace_id=trace_id)
        self.error = error


class StatusError(ClientError):
    """The pool responded with an error status. retry_after: seconds to wait that the pool asks for, else None."""

    outcome = "answered"

    def __init__(self, *messages: str, status: int, trace_id: str | None, retry_after: float | None = None) -> None:
        super().__init__(*messages, status=status, trace_id=trace_id)
        self.retry_after = retry_after


class BadRequestError(StatusError):
    """400: the pool rejects the request or its message; `messages` says why."""

    outcome = "bad_request"


class NotAuthenticatedError(StatusError):
    """401: the pool does not accept the access token, not even a fresh one."""

    outcome = "not_authenticated"


class NotAuthorisedError(StatusError):
    """403: the caller's roles or ids do not allow the operation."""

    outcome = "not_authorised"


class NotFoundError(StatusError):
    """404: the pool has no such contract, or none that the caller may see."""

    outcome = "not_found"


class TooLargeError(StatusError):
    """413: the request is larger than the pool accepts."""

    outcome = "too_large"


class TooManyRequestsError(StatusError):
    """429: a rate limit is exceeded; the pool did nothing."""

    outcome = "too_many_requests"


class UpstreamFailedError(StatusError):
    """502: a service that the pool depends on failed."""

    outcome = "upstream_failed"


class UnavailableError(StatusError):
    """503: the pool cannot handle the request now."""

    outcome = "unavailable"


BY_STATUS: Final[dict[int, type[StatusError]]] = {
    400: BadRequestError,
    401: NotAuthenticatedError,
    403: NotAuthorisedError,
    404: NotFoundError,
    413: TooLargeError,
    429: TooManyRequestsError,
    502: UpstreamFailedError,
    503: UnavailableError,
}
"""Subclasses by HTTP status. Any other status raises StatusError itself."""
