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
    ├── UpstreamError             an external service refused or failed; nothing was changed
    └── ConfigurationError        the operator has to change something

A message is one sentence, or several in `messages`, that is safe to show to a partner. `code` is stable. The mapping to
HTTP status and ISO 15118 response code is in `ccp.server.http.errors`. Causes are chained with `raise … from exc` and
reach only the log.
"""

from __future__ import annotations

from typing import ClassVar, Final, TypeVar

_MAX_CAUSES: Final = 16


class CCPError(Exception):
    """Base class. messages: at least one sentence, safe to show to a partner. code: stable."""

    code: ClassVar[str] = "error"

    def __init__(self, *messages: str) -> None:
        super().__init__(*messages)
        self.messages: tuple[str, ...] = messages

    def __str__(self) -> str:
        return " ".join(self.messages)


class InputError(CCPError):
    """The input cannot be read."""

    code = "input"


class FieldError(InputError):
    """A field, parameter or header breaks its pattern."""

    code = "field"


class EXIError(InputError):
    """Bytes that are not a valid message, or a message that cannot be encoded.

    offset: in bits from the start of the message, None when encoding.
    path: element path such as "V2G_Message/Body/CertificateInstallationReq".
    """

    code = "exi"

    def __init__(self, reason: str, offset: int | None = None, path: str = "") -> None:
        place = (f" at bit {offset}" if offset is not None else "") + (f" in {path}" if path else "")
        super().__init__(f"{reason}{place}")
        self.reason = reason
        self.offset = offset
        self.path = path


class MismatchError(InputError):
    """Values that must agree do not."""

    code = "mismatch"


class TooLong(InputError):
    """A message that is longer than the sender may send or the receiver takes."""

    code = "too_long"


class Unsupported(InputError):
    """A request of a kind that the pool does not serve."""

    code = "unsupported"


class VerificationError(CCPError):
    """The input was read, but is not trustworthy."""

    code = "verification"


class SignatureError(VerificationError):
    """A digest or SignatureValue does not match."""

    code = "signature"


class ChainError(VerificationError):
    """No valid certificate path to an anchor."""

    code = "chain"


class ExpiredError(ChainError):
    """A certificate of the path has expired."""

    code = "expired"


class RevokedError(VerificationError):
    """A certificate of the path is revoked (final)."""

    code = "revoked"


class KeyMaterialError(VerificationError):
    """A public key or an encrypted key is malformed."""

    code = "key_material"


class AccessError(CCPError):
    """The caller may not do this."""

    code = "access"


class NotAuthenticated(AccessError):
    """No valid token, or no valid client credentials."""

    code = "not_authenticated"


class NotAuthorised(AccessError):
    """A valid token without permission for this."""

    code = "not_authorised"


class NotFound(CCPError):
    """Unknown, or not visible to this caller."""

    code = "not_found"


class NoContract(NotFound):
    """No contract is stored for the vehicle."""

    code = "no_contract"


class NothingDeliverable(NotFound):
    """Contracts are stored, but none can be delivered now."""

    code = "nothing_deliverable"


class Conflict(CCPError):
    """A name or id is already in use."""

    code = "conflict"


class PreconditionFailed(CCPError):
    """The state is not what the caller requires."""

    code = "precondition_failed"


class LimitExceeded(CCPError):
    """A storage limit is reached."""

    code = "limit_exceeded"


class TooManyRequests(CCPError):
    """A rate limit is exceeded. retry_after: seconds until a retry can succeed, at least one."""

    code = "too_many_requests"

    def __init__(self, *messages: str, retry_after: int) -> None:
        super().__init__(*messages)
        self.retry_after = retry_after


class Unavailable(CCPError):
    """A temporary failure. retry_after: seconds until a retry can succeed, None if unknown."""

    code = "unavailable"

    def __init__(self, *messages: str, retry_after: int | None = None) -> None:
        super().__init__(*messages)
        self.retry_after = retry_after


class UpstreamError(CCPError):
    """An external service refused or failed."""

    code = "upstream"


class ConfigurationError(CCPError):
    """The operator has to change something."""

    code = "configuration"


E = TypeVar("E", bound=BaseException)


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
