"""The exceptions of all packages.

    CCPError
    ├── InputError                the input cannot be read
    │   ├── FieldError            a field, parameter or header breaks its pattern
    │   ├── EXIError              bytes that are not one of the messages
    │   ├── MismatchError         values that must agree do not
    │   ├── TooLong               a message that the sender or the receiver does not take
    │   └── Unsupported           a request of a kind that the pool does not serve
    ├── VerificationError         the input was read, but is not trustworthy
    │   ├── SignatureError        a digest or SignatureValue does not match
    │   ├── ChainError            no valid certificate path to an anchor
    │   │   └── ExpiredError      … because a certificate is past its validity
    │   ├── RevokedError          a certificate of the path is revoked (final)
    │   └── KeyMaterialError      a public key or an encrypted key is malformed
    ├── AccessError
    │   ├── NotAuthenticated      no valid token, or no valid client credentials
    │   └── NotAuthorised         a valid token, but not for this
    ├── NotFound                  unknown, or not visible to this caller
    ├── Conflict                  a name or id is already in use
    ├── PreconditionFailed        the state is not what the caller requires; nothing has changed
    ├── LimitExceeded             a storage limit is reached
    ├── TooManyRequests           a rate limit is exceeded
    ├── Unavailable               temporary failure; nothing has changed
    │   └── DatabaseUnavailable   … because the database does not answer or cannot write
    ├── UpstreamError             an external service refused or failed; nothing was changed
    └── ConfigurationError        the operator has to change something

A message is one sentence, or several in `messages`, that is safe to show to a partner. `code` is the stable code of the
refusal (`ccp.errors.codes`): that of the class, unless the place that raises gives a more exact one. `outcome` is the
coarser name that metrics and the audit trail count. The mapping to HTTP status and ISO 15118 response code is in
`ccp.server.http.errors`. Causes are chained with `raise … from exc` and reach only the log.
"""

from __future__ import annotations

from typing import ClassVar, Final, TypeVar

from ccp.errors.codes import ErrorCode

_MAX_CAUSES: Final = 16


class CCPError(Exception):
    """Base class.

    messages: at least one sentence, safe to show to a partner. code: None for that of the class. check: name of the
    failed check of a verification, None outside of one. concerned: EMAIDs of the contracts that could not be delivered.
    No message names them.
    """

    outcome: ClassVar[str] = "error"
    code: ErrorCode = ErrorCode.INTERNAL_ERROR
    check: str | None = None
    concerned: tuple[str, ...] = ()

    def __init__(self, *messages: str, code: ErrorCode | None = None) -> None:
        super().__init__(*messages)
        self.messages: tuple[str, ...] = messages
        if code is not None:
            self.code = code

    def at_check(self, check: str, code: ErrorCode | None = None) -> None:
        """Record the check of a verification that failed. code: replaces the code of the class, not a more exact one.

        The innermost check counts.
        """
        if self.check is None:
            self.check = check
            if code is not None and "code" not in self.__dict__:
                self.code = code

    def __str__(self) -> str:
        return " ".join(self.messages)


class InputError(CCPError):
    """The input cannot be read."""

    outcome = "input"
    code = ErrorCode.INPUT_INVALID


class FieldError(InputError):
    """A field, parameter or header breaks its pattern."""

    outcome = "field"
    code = ErrorCode.FIELD_INVALID


class EXIError(InputError):
    """Bytes that are not a valid message, or a message that cannot be encoded.

    offset: in bits from the start of the message, None when encoding.
    path: element path such as "V2G_Message/Body/CertificateInstallationReq".
    """

    outcome = "exi"
    code = ErrorCode.MESSAGE_UNREADABLE

    def __init__(self, reason: str, offset: int | None = None, path: str = "") -> None:
        place = (f" at bit {offset}" if offset is not None else "") + (f" in {path}" if path else "")
        super().__init__(f"{reason}{place}")
        self.reason = reason
        self.offset = offset
        self.path = path


class MismatchError(InputError):
    """Values that must agree do not."""

    outcome = "mismatch"
    code = ErrorCode.VALUES_DISAGREE


class TooLong(InputError):
    """A message that is longer than the sender may send or the receiver takes."""

    outcome = "too_long"
    code = ErrorCode.MESSAGE_TOO_LONG


class Unsupported(InputError):
    """A request of a kind that the pool does not serve."""

    outcome = "unsupported"
    code = ErrorCode.ACTION_UNSUPPORTED


class VerificationError(CCPError):
    """The input was read, but is not trustworthy."""

    outcome = "verification"
    code = ErrorCode.VERIFICATION_FAILED


class SignatureError(VerificationError):
    """A digest or SignatureValue does not match."""

    outcome = "signature"
    code = ErrorCode.SIGNATURE_INVALID


class ChainError(VerificationError):
    """No valid certificate path to an anchor."""

    outcome = "chain"
    code = ErrorCode.CERTIFICATE_INVALID


class ExpiredError(ChainError):
    """A certificate of the path has expired."""

    outcome = "expired"
    code = ErrorCode.CERTIFICATE_EXPIRED


class RevokedError(VerificationError):
    """A certificate of the path is revoked (final)."""

    outcome = "revoked"
    code = ErrorCode.CERTIFICATE_REVOKED


class KeyMaterialError(VerificationError):
    """A public key or an encrypted key is malformed."""

    outcome = "key_material"
    code = ErrorCode.KEY_MATERIAL_INVALID


class AccessError(CCPError):
    """The caller may not do this."""

    outcome = "access"
    code = ErrorCode.NOT_ALLOWED


class NotAuthenticated(AccessError):
    """No valid token, or no valid client credentials."""

    outcome = "not_authenticated"
    code = ErrorCode.TOKEN_INVALID


class NotAuthorised(AccessError):
    """A valid token without permission for this."""

    outcome = "not_authorised"
    code = ErrorCode.NOT_ALLOWED


class NotFound(CCPError):
    """Unknown, or not visible to this caller."""

    outcome = "not_found"
    code = ErrorCode.NOT_FOUND


class NoContract(NotFound):
    """No contract is stored for the vehicle."""

    outcome = "no_contract"
    code = ErrorCode.NO_CONTRACT_FOR_VEHICLE


class NothingDeliverable(NotFound):
    """Contracts are stored, but none can be delivered now."""

    outcome = "nothing_deliverable"
    code = ErrorCode.NOTHING_DELIVERABLE


class Conflict(CCPError):
    """A name or id is already in use."""

    outcome = "conflict"
    code = ErrorCode.CONFLICT


class PreconditionFailed(CCPError):
    """The state is not what the caller requires."""

    outcome = "precondition_failed"
    code = ErrorCode.PRECONDITION_FAILED


class LimitExceeded(CCPError):
    """A storage limit is reached."""

    outcome = "limit_exceeded"
    code = ErrorCode.CONTRACT_LIMIT_REACHED


class TooManyRequests(CCPError):
    """A rate limit is exceeded. retry_after: seconds until a retry can succeed, at least one."""

    outcome = "too_many_requests"
    code = ErrorCode.RATE_LIMIT_EXCEEDED

    def __init__(self, *messages: str, retry_after: int, code: ErrorCode | None = None) -> None:
        super().__init__(*messages, code=code)
        self.retry_after = retry_after


class Unavailable(CCPError):
    """A temporary failure. retry_after: seconds until a retry can succeed, None if unknown."""

    outcome = "unavailable"
    code = ErrorCode.TEMPORARILY_UNAVAILABLE

    def __init__(self, *messages: str, retry_after: int | None = None, code: ErrorCode | None = None) -> None:
        super().__init__(*messages, code=code)
        self.retry_after = retry_after


class DatabaseUnavailable(Unavailable):
    """The database does not answer, or cannot write."""

    outcome = "database_unavailable"
    code = ErrorCode.DATABASE_UNAVAILABLE


class UpstreamError(CCPError):
    """An external service refused or failed."""

    outcome = "upstream"
    code = ErrorCode.UPSTREAM_FAILED


class ConfigurationError(CCPError):
    """The operator has to change something."""

    outcome = "configuration"
    code = ErrorCode.CONFIGURATION_INVALID


C = TypeVar("C", bound=CCPError)
E = TypeVar("E", bound=BaseException)


def with_code_of(first: CCPError, error: C) -> C:
    """Give an error that stands for others the code, check and `concerned` of the first. Returns the same error."""
    error.code, error.check, error.concerned = first.code, first.check, first.concerned
    return error


def strip_tracebacks(error: E) -> E:
    """Remove the tracebacks of an error and its causes before it is stored. Returns the same error.

    A traceback refers to frames, and a frame to its variables. An error stored in one of these variables is part of a
    reference cycle that contains a whole request, which only the garbage collector frees.
    """
    found: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if found is None:
            break
        found.__traceback__ = None
        found = found.__cause__ or found.__context__
    return error
