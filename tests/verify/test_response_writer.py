"""Responses to vehicles: stored ones put into a session, and negative ones."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ccp import exi, verify
from ccp.errors import (
    CCPError,
    ChainError,
    EXIError,
    ExpiredError,
    KeyMaterialError,
    MismatchError,
    NoContract,
    NotFound,
    NothingDeliverable,
    RevokedError,
    SignatureError,
    Unavailable,
)
from ccp.exi import iso2, iso20
from ccp.ids import EMAID, Namespace
from ccp.server.domain.contracts import SignedContract, signed_contract
from ccp.testing.partners import Car
from ccp.testing.pki import OEM_PROVISIONING, PKI
from tests.verify.messages import SESSION, THE_EMAID, THE_PCID, contract_message, message20, verify_response
from tests.world import AT


def stored(pki: PKI, car: Car, emaid: EMAID = THE_EMAID) -> SignedContract:
    verified = verify_response(contract_message(pki, emaid, car), pki)
    return signed_contract(verified, car.pcid, None, AT)


@pytest.mark.parametrize("session", [b"", b"\1", SESSION, b"\xff" * 8])
def test_response_writer_answers_the_session_and_the_vehicle_can_install_it(pki: PKI, session: bytes) -> None:
    car = Car.generate(pki, THE_PCID, AT)
    contract = stored(pki, car)
    answer = verify.with_session(contract, session, AT)
    emaid, key = car.install(answer, session, AT)
    assert emaid == THE_EMAID
    assert key.public_key() is not None
    with pytest.raises(MismatchError):
        car.install(answer, b"\7" * 8, AT)


@pytest.mark.parametrize("kind", ["iso20", "ed448"])
@pytest.mark.parametrize("remaining", [None, 0, 1, 255])
def test_iso20_answer_carries_the_time_and_the_number_left(
    pkis: dict[str, PKI], kind: str, remaining: int | None
) -> None:
    pki = pkis[kind]
    car = Car.generate(pki, THE_PCID, AT)
    contract = stored(pki, car)
    later = datetime(2033, 5, 18, 3, 33, 20, 900_000, tzinfo=UTC)
    answer = verify.with_session(contract, SESSION, later, remaining)
    message, before = message20(answer), message20(contract.response)
    assert message.Header.TimeStamp == 2_000_000_000
    assert message.RemainingContractCertificateChains == (remaining or 0)
    assert message.Header.Signature == before.Header.Signature
    assert message.SignedInstallationData == before.SignedInstallationData
    assert car.install(answer, SESSION, AT)[0] == THE_EMAID


def test_iso2_answer_differs_in_the_session_id_and_nothing_else(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    contract = stored(pki, Car.generate(pki, THE_PCID, AT))
    before, after = exi.decode(contract.response), exi.decode(verify.with_session(contract, SESSION, AT, 3))
    assert after.Header.SessionID == SESSION
    assert after._replace(Header=before.Header) == before  # type: ignore[arg-type]
    assert after.Header.Signature == before.Header.Signature


def test_session_id_that_is_too_long_is_refused(pki: PKI) -> None:
    contract = stored(pki, Car.generate(pki, THE_PCID, AT))
    with pytest.raises(EXIError):
        verify.with_session(contract, bytes(9), AT)


REASONS = [
    (
        NoContract("No contract is stored for the vehicle."),
        "FAILED_NoCertificateAvailable",
        "WARNING_NoContractMatchingPCIDFound",
    ),
    (
        NothingDeliverable("No contract of the vehicle is valid now."),
        "FAILED_NoCertificateAvailable",
        "WARNING_NoCertificateAvailable",
    ),
    (NotFound("Not found."), "FAILED_NoCertificateAvailable", "WARNING_NoCertificateAvailable"),
    (SignatureError("The message is not signed."), "FAILED_SignatureError", "FAILED_SignatureError"),
    (ExpiredError("Certificate expired."), "FAILED_CertificateExpired", "WARNING_CertificateExpired"),
    (RevokedError("Certificate revoked."), "FAILED_CertificateRevoked", "WARNING_CertificateRevoked"),
    (ChainError("No chain."), "FAILED_CertChainError", "WARNING_CertificateValidationError"),
    (MismatchError("Mismatch."), "FAILED", "FAILED"),
    (KeyMaterialError("Key."), "FAILED", "FAILED"),
    (EXIError("odd", 17, "V2G_Message"), "FAILED", "FAILED"),
    (Unavailable("Later."), "FAILED", "FAILED"),
    (ChainError("Several.", "Sentences."), "FAILED_CertChainError", "WARNING_CertificateValidationError"),
]


NUMBERS2 = {
    "FAILED": 4, "FAILED_CertificateExpired": 10, "FAILED_SignatureError": 11, "FAILED_NoCertificateAvailable": 12,
    "FAILED_CertChainError": 13, "FAILED_CertificateRevoked": 25,
}  # fmt: skip


@pytest.mark.parametrize(("reason", "code2", "code20"), REASONS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("session", [b"", SESSION])
def test_refusal_tells_the_vehicle_its_reason_in_the_codes_of_its_edition(
    reason: CCPError, code2: str, code20: str, session: bytes
) -> None:
    at = datetime(2026, 1, 1, 0, 0, 0, 700_000, tzinfo=UTC)
    assert iso2.RESPONSE_CODES.index(code2) == NUMBERS2[code2]
    message = exi.decode(verify.negative_response(Namespace.ISO2, session, reason, at))
    assert message == iso2.V2G_Message(
        iso2.Header(session, iso2.Notification("UnknownError", str(reason)), None),
        iso2.CertificateInstallationRes(
            code2,
            iso2.CertificateChain(None, b"\0"),
            iso2.CertificateChain("id1", b"\0"),
            iso2.ContractSignatureEncryptedPrivateKey("id2", bytes(48)),
            iso2.DHpublickey("id3", bytes(65)),
            iso2.EMAID("id4", "ZZZZZ000000000"),
        ),
    )
    message = exi.decode(verify.negative_response(Namespace.ISO20, session, reason, at))
    assert message == iso20.CertificateInstallationRes(
        iso20.Header(session, 1_767_225_600, None), code20, "Finished", iso20.CertificateChain(b"\0"),
        iso20.SignedInstallationData(
            "id1", iso20.CertificateChain(b"\0", (b"\0",)), "SECP521", bytes(133), SECP521_EncryptedPrivateKey=bytes(94)
        ), 0,
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "x" * 64,
        "x" * 65,
        "word " * 200,
        "ü€😀" * 40,
        "x" * 60 + "   yy and more",
        "",
        'Certificate "…" has expired. ' * 9,
    ],
)
def test_response_writer_limits_a_fault_message_to_64_characters_for_any_reason(text: str) -> None:
    message = exi.decode(verify.negative_response(Namespace.ISO2, SESSION, ChainError(text), AT))
    assert isinstance(message, iso2.V2G_Message)
    assert message.Header.Notification is not None
    fault = message.Header.Notification.FaultMsg
    assert fault is not None
    assert len(fault) <= 64
    assert fault == text if len(text) <= 64 else fault.endswith("...") and text.startswith(fault[:-3])


@pytest.mark.parametrize("cn", ["a\u0000b", "\ud7ff\uffff", "a\nb", "\u202eabc", "😀" * 16])
def test_refusal_can_be_written_whatever_is_in_a_foreign_certificate(pkis: dict[str, PKI], cn: str) -> None:
    """The name of a certificate gets into the sentence, and EXI does not take every character."""
    pki = pkis["iso2"]
    issuer = pki.oem_sub2.issue("X", OEM_PROVISIONING, now=AT)
    provisioning = replace(issuer, certificate=issuer.issue(cn, OEM_PROVISIONING, now=AT).certificate)
    for reason in (ChainError(f"Certificate {provisioning.certificate.display_name} is odd."), NotFound(cn)):
        for namespace in Namespace:
            exi.decode(verify.negative_response(namespace, SESSION, reason, AT))
