"""Deliveries through OCPP: which of a vehicle's contracts is next, and how a refusal is worded. Pure.

An OCPP response has room for one contract. A vehicle of ISO 15118-20 with several repeats its request while more
remain ([V2G20-1579]), so the pool remembers which ones it has handed out in answer to this request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from ccp.errors import (
    CCPError,
    ChainError,
    EXIError,
    ExpiredError,
    NotFound,
    RevokedError,
    SignatureError,
    TooLong,
    Unavailable,
    Unsupported,
)
from ccp.exi import iso20
from ccp.ids import EMAID, Namespace
from ccp.schemas.error_messages import error_messages
from ccp.verify import InstallationRequest
from ccp.verify.request import known_emaids

_MAX_CHAINS: Final = 255  # An unsigned byte in the message.

# The first row whose type fits the error. Codes of OCPP 2.1, part 2, appendix 5, where it has one.
_REASON_CODES: Final[tuple[tuple[type[CCPError], str], ...]] = (
    (Unavailable, "Unavailable"),
    (TooLong, "TooLargeElement"),
    (Unsupported, "UnsupportedRequest"),
    (EXIError, "InvalidValue"),
    (NotFound, "NotFound"),
    (SignatureError, "InvalidSignature"),
    (ExpiredError, "CertExpired"),
    (RevokedError, "CertRevoked"),
    (ChainError, "InvalidCertChain"),
    (CCPError, "InternalError"),
)


class Refusal(NamedTuple):
    """The reason of a refusal in OCPP. code: at most 20 characters."""

    code: str
    info: str


def refusal(error: CCPError, max_info: int) -> Refusal:
    """The reason of a refusal in OCPP. max_info: characters of the text, which is shortened to them."""
    code = next(code for kind, code in _REASON_CODES if isinstance(error, kind))
    text = " ".join(error_messages(error))
    if isinstance(error, Unavailable):
        text = f"temporary: {text}"
    text = "".join(character if character.isprintable() else "?" for character in text[: max_info + 1])
    return Refusal(code, text if len(text) <= max_info else f"{text[: max_info - 3]}...")


class HandedOut(NamedTuple):
    """A contract that was handed out. key: digest of the idempotency key of that request, if it had one."""

    emaid: EMAID
    key: str | None


class Turn(NamedTuple):
    """The contract to hand out now.

    emaid: the contract. remaining: how many follow. handed_out: what to remember, this one included.
    """

    emaid: EMAID
    remaining: int
    handed_out: tuple[HandedOut, ...]


def next_turn(
    candidates: Sequence[EMAID], handed_out: Sequence[HandedOut], max_chains: int, key: str | None = None
) -> Turn:
    """Which contract a repeated request gets.

    candidates: at least one; the vehicle's deliverable contracts now, in order of delivery. handed_out: in answer to
    this request so far. max_chains: how many the vehicle takes in all. key: a request whose key has got a contract gets
    the same one again.

    The first candidate that was not handed out is next, whatever else has changed meanwhile: a contract that was
    removed is passed over, one that was added or that is the default now is taken by its place. After the last one the
    round begins again. A vehicle that knows that nothing remains does not repeat its request, so this one has not
    received a response.
    """
    given = {item.emaid for item in handed_out}
    left = [emaid for emaid in candidates if emaid not in given][: max(0, max_chains - len(given))]
    if key is not None:
        for item in handed_out:
            if item.key == key and item.emaid in candidates:
                return Turn(item.emaid, len(left), tuple(handed_out))
    if not left:
        handed_out, left = (), list(candidates[:max_chains])
    return Turn(left[0], len(left) - 1, (*handed_out, HandedOut(left[0], key)))


def effective_request(
    request: InstallationRequest, max_chains: int | None, prioritized_emaids: Iterable[str]
) -> InstallationRequest:
    """The request with what the station states beside it, where the vehicle's message of ISO 15118-20 has nothing.

    max_chains: for MaximumContractCertificateChains, if that is zero: the field is mandatory, and a vehicle that wants
    no contract does not ask for one. A vehicle of ISO 15118-2 gets its default contract whatever the station states.
    """
    if request.namespace is not Namespace.ISO20:
        return request
    return replace(
        request,
        max_chains=request.max_chains or min(max_chains or 0, _MAX_CHAINS),
        prioritized_emaids=request.prioritized_emaids or known_emaids(prioritized_emaids),
    )


def request_digest(request: InstallationRequest) -> str:
    """SHA-256 (hex) of a vehicle's request of ISO 15118-20, by which a repetition is recognised.

    It covers session id, provisioning certificates, roots, MaximumContractCertificateChains and PrioritizedEMAIDs. It
    leaves out TimeStamp and Signature, because some vehicles write the current time or sign again when they repeat.
    Its input is no EXI: messages are read with longer texts than are written.
    """
    message = request.parsed.message
    assert isinstance(message, iso20.CertificateInstallationReq), "only these vehicles repeat their request"
    unsigned = message._replace(Header=iso20.Header(message.Header.SessionID, 0))
    return hashlib.sha256(repr(unsigned).encode()).hexdigest()
