"""Every deliberate error.

    CCPError
    ├── InputError                what was sent cannot be read
    │   ├── FieldError            a field, parameter or header breaks its pattern
    │   ├── EXIError              octets that are not one of the messages
    │   └── MismatchError         parts that must agree do not
    ├── VerificationError         it was read, but it is not to be trusted
    │   ├── SignatureError        a digest or a SignatureValue does not hold
    │   ├── ChainError            no valid certificate path to an anchor
    │   │   └── ExpiredError      … because a certificate is past its validity
    │   ├── RevokedError          a certificate of the path is revoked (final)
    │   └── KeyMaterialError      a public key or an encrypted key is malformed
    ├── AccessError
    │   ├── NotAuthenticated      no valid token, or no valid client credentials
    │   └── NotAuthorised         a valid token, but not for this
    ├── NotFound                  unknown here, or not this caller's to know
    ├── Conflict                  what is asked for is taken (a name, an id of another party)
    ├── PreconditionFailed        the state is not what the caller requires; nothing was changed
    ├── LimitExceeded             no more may be stored
    ├── TooManyRequests           within a limit, but not now
    ├── Unavailable               try again later; nothing was changed
    ├── UpstreamError             an external service refused or failed; nothing was changed
    └── ConfigurationError        the operator has to act

A message is one sentence (or several, in `messages`) that is safe to show a partner. `code` is stable. How an error is
answered (HTTP status, ISO 15118 response code) is the edge's business, see `ccp.server.http.errors`. Causes are
chained with `raise … from exc` and reach only the log.
"""

from __future__ import annotations

from typing import ClassVar, Final, TypeVar

_LONGEST_CHAIN: Final = 16  # Causes of causes.


class CCPError(Exception):
    """Base of every deliberate error. `messages`: at least one sentence, safe to show a partner."""

    code: ClassVar[str] = "error"

    def __init__(self, *messages: str) -> None:
        super().__init__(*messages)
        self.messages: tuple[str, ...] = messages

    def __str__(self) -> str:
        return " ".join(self.messages)


class InputError(CCPError):
    code = "input"


class FieldError(InputError):
    code = "field"


class EXIError(InputError):
    """Octets that are not one of the messages, or a message that cannot be written.

    offset: position in bits from the start of the stream, or None when writing.
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
    code = "mismatch"


class VerificationError(CCPError):
    code = "verification"


class SignatureError(VerificationError):
    code = "signature"


class ChainError(VerificationError):
    code = "chain"


class ExpiredError(ChainError):
    code = "expired"


class RevokedError(VerificationError):
    code = "revoked"


class KeyMaterialError(VerificationError):
    code = "key_material"


class AccessError(CCPError):
    code = "access"


class NotAuthenticated(AccessError):
    code = "not_authenticated"


class NotAuthorised(AccessError):
    code = "not_authorised"


class NotFound(CCPError):
    code = "not_found"


class NoContract(NotFound):
    """Nothing at all is stored for the vehicle."""

    code = "no_contract"


class NothingDeliverable(NotFound):
    """Contracts are stored, but none may be handed out now."""

    code = "nothing_deliverable"


class Conflict(CCPError):
    code = "conflict"


class PreconditionFailed(CCPError):
    code = "precondition_failed"


class LimitExceeded(CCPError):
    code = "limit_exceeded"


class TooManyRequests(CCPError):
    """retry_after: seconds until it would be within the limit, at least one."""

    code = "too_many_requests"

    def __init__(self, *messages: str, retry_after: int) -> None:
        super().__init__(*messages)
        self.retry_after = retry_after


class Unavailable(CCPError):
    """retry_after: seconds until it is worth another try, where that is known."""

    code = "unavailable"

    def __init__(self, *messages: str, retry_after: int | None = None) -> None:
        super().__init__(*messages)
        self.retry_after = retry_after


class UpstreamError(CCPError):
    code = "upstream"


class ConfigurationError(CCPError):
    code = "configuration"


E = TypeVar("E", bound=BaseException)


def strip_tracebacks(error: E) -> E:
    """An error that is to be kept, without the frames that it and its causes went through. Returns the same error.

    A frame holds its variables and its caller's frame. An error that is kept in one of these variables is part of a
    reference cycle, with a whole request in it, and only the garbage collector finds that.
    """
    found: BaseException | None = error
    for _ in range(_LONGEST_CHAIN):
        if found is None:
            break
        found.__traceback__ = None
        found = found.__cause__ or found.__context__
    return error
