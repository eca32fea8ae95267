"""Responses to vehicles: a stored response adapted to the session, or a negative message of the edition."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Protocol

from ccp import exi
from ccp.errors import CCPError, ChainError, ExpiredError, NoContract, NotFound, RevokedError, SignatureError
from ccp.exi import iso2, iso20
from ccp.ids import PLACEHOLDER_EMAID, Namespace


class StoredResponse(Protocol):
    """The CertificateInstallationRes of a signed contract.

    response: the published message (EXI). remaining_from_end: -20 only, bits from
    RemainingContractCertificateChains to the end of the message.
    """

    @property
    def namespace(self) -> Namespace:
        """The edition of the message."""

    @property
    def response(self) -> bytes:
        """The message, EXI."""

    @property
    def remaining_from_end(self) -> int | None:
        """Bits from RemainingContractCertificateChains to the end of the message (-20)."""


def with_session(contract: StoredResponse, session_id: bytes, now: datetime, remaining: int | None = None) -> bytes:
    """Adapt a stored response to a session. Only fields that the signature does not cover are replaced.

    session_id: at most eight bytes. remaining: -20 only, number of contracts after this one; None keeps the stored one.
    """
    if contract.namespace is Namespace.ISO2:
        return exi.replace_header_fields(contract.response, session_id=session_id)
    return exi.replace_header_fields(
        contract.response,
        session_id=session_id,
        timestamp=int(now.timestamp()),
        remaining=remaining,
        remaining_from_end=contract.remaining_from_end if remaining is not None else None,
    )


# Response codes of negative messages, by edition: the first row whose type fits the error.
_REFUSALS: Final[tuple[tuple[type[CCPError], str, str], ...]] = (
    (NoContract, "FAILED_NoCertificateAvailable", "WARNING_NoContractMatchingPCIDFound"),
    (NotFound, "FAILED_NoCertificateAvailable", "WARNING_NoCertificateAvailable"),
    (SignatureError, "FAILED_SignatureError", "FAILED_SignatureError"),
    (ExpiredError, "FAILED_CertificateExpired", "WARNING_CertificateExpired"),
    (RevokedError, "FAILED_CertificateRevoked", "WARNING_CertificateRevoked"),
    (ChainError, "FAILED_CertChainError", "WARNING_CertificateValidationError"),
    (CCPError, "FAILED", "FAILED"),
)
# Content of mandatory elements in negative messages. It is valid against the schemas, because some EV stacks validate a
# message before they read the ResponseCode. Empty values are valid too, but some receivers fail on them.
_NO_CERTIFICATE: Final = b"\0"
_NO_KEY: Final = bytes(48)
_NO_DH_KEY: Final = bytes(65)
_NO_KEY_SECP521: Final = bytes(94)
_NO_DH_KEY_SECP521: Final = bytes(133)


def negative_response(namespace: Namespace, session_id: bytes, reason: CCPError, now: datetime) -> bytes:
    """Build the negative message for a session: valid against the schema of the edition, and not signed.

    Mandatory elements contain zero bytes in the lengths of the schema, Ids `id1`, `id2`, … and the placeholder EMAID.
    reason: decides the ResponseCode.
    """
    code2, code20 = next(row[1:] for row in _REFUSALS if isinstance(reason, row[0]))
    if namespace is Namespace.ISO2:
        notification = iso2.Notification("UnknownError", _short(str(reason)))
        body = iso2.CertificateInstallationRes(
            code2,
            iso2.CertificateChain(None, _NO_CERTIFICATE),
            iso2.CertificateChain("id1", _NO_CERTIFICATE),
            iso2.ContractSignatureEncryptedPrivateKey("id2", _NO_KEY),
            iso2.DHpublickey("id3", _NO_DH_KEY),
            iso2.EMAID("id4", PLACEHOLDER_EMAID),
        )
        return exi.encode(iso2.V2G_Message(iso2.Header(session_id, notification), body))
    data = iso20.SignedInstallationData(
        "id1",
        iso20.CertificateChain(_NO_CERTIFICATE, (_NO_CERTIFICATE,)),
        "SECP521",
        _NO_DH_KEY_SECP521,
        SECP521_EncryptedPrivateKey=_NO_KEY_SECP521,
    )
    header = iso20.Header(session_id, int(now.timestamp()))
    chain20 = iso20.CertificateChain(_NO_CERTIFICATE)
    return exi.encode(iso20.CertificateInstallationRes(header, code20, "Finished", chain20, data, 0))


def _short(text: str) -> str:
    """At most 64 characters, the limit of FaultMsg and of many receivers, and none that XML does not allow."""
    text = "".join(character if character.isprintable() else "?" for character in text[:65])
    return text if len(text) <= 64 else text[:61].rstrip() + "..."
