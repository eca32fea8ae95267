"""Negative messages, validated by tools that check the schema before they read the ResponseCode.

EXIficient decodes, libxml2 validates against the XML schemas, and the message classes of an EV stack read the code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from ccp import exi, verify
from ccp.errors import (
    CCPError,
    ChainError,
    ExpiredError,
    KeyMaterialError,
    NoContract,
    NotFound,
    NothingDeliverable,
    RevokedError,
    SignatureError,
    Unavailable,
)
from ccp.ids import Namespace
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.exi import ev_stack, xml_schema
from tests.world import AT, SESSION, Pool, again, expired_car, new_pcid, post_body, response_bytes

EDITIONS = {"iso2": Namespace.ISO2, "iso20": Namespace.ISO20}
NO, WARN = "FAILED_NoCertificateAvailable", "WARNING_NoCertificateAvailable"
REASONS: list[tuple[CCPError, str, str]] = [
    (NoContract("No contract is stored for the vehicle."), NO, "WARNING_NoContractMatchingPCIDFound"),
    (NothingDeliverable("No contract of the vehicle is valid now."), NO, WARN),
    (NotFound("Nothing."), NO, WARN),
    (SignatureError("The signature is wrong."), "FAILED_SignatureError", "FAILED_SignatureError"),
    (ExpiredError("Expired."), "FAILED_CertificateExpired", "WARNING_CertificateExpired"),
    (RevokedError("Revoked."), "FAILED_CertificateRevoked", "WARNING_CertificateRevoked"),
    (ChainError("x" * 500), "FAILED_CertChainError", "WARNING_CertificateValidationError"),
    (ChainError('<&"\0\ud800\ufffe\r\n'), "FAILED_CertChainError", "WARNING_CertificateValidationError"),
    (KeyMaterialError("Key."), "FAILED", "FAILED"),
    (Unavailable("Later."), "FAILED", "FAILED"),
]


@pytest.fixture(scope="module", autouse=True)
def judges() -> None:
    xml_schema.skip_where_absent()


@pytest.mark.parametrize("edition", EDITIONS)
def test_negative_message_for_every_reason_is_valid(edition: str) -> None:
    namespace = EDITIONS[edition]
    refused = [verify.negative_response(namespace, SESSION, reason, AT) for reason, _, _ in REASONS]
    for message, (reason, _, _) in zip(refused, REASONS, strict=True):
        assert xml_schema.violations(edition, message) == [], reason
    wanted = [code2 if edition == "iso2" else code20 for _, code2, code20 in REASONS]
    assert ev_stack.response_codes((edition, message) for message in refused) == wanted


def test_schema_validators_reject_invalid_values() -> None:
    """Verifies that the validators of the test above can fail."""
    for edition, namespace in EDITIONS.items():
        message: Any = exi.decode(verify.negative_response(namespace, SESSION, ChainError("x"), AT))
        if edition == "iso2":
            broken = message._replace(Body=message.Body._replace(eMAID=message.Body.eMAID._replace(value="0")))
        else:
            data = message.SignedInstallationData._replace(SECP521_EncryptedPrivateKey=b"\0")
            broken = message._replace(SignedInstallationData=data)
        assert xml_schema.violations(edition, exi.encode(broken)), edition
        (code,) = ev_stack.response_codes([(edition, exi.encode(broken))])
        assert code.startswith("error: V2GMessageValidationError"), code


def opnc(pool: Pool, car: Car, request: bytes) -> bytes:
    answer = pool.cpo.post("/signedcontractdata", json=post_body(request, str(car.namespace)))
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["signedContractDataCollection"]
    assert item["emaid"] == "ZZZZZ000000000"
    return response_bytes(item)


def opcp(pool: Pool, car: Car, request: bytes) -> bytes:
    headers = {"Authorization": f"Bearer {pool.token('cpo')}"}
    body = post_body(request, str(car.namespace))
    answer: httpx.Response = pool.http.post("/v1/ccp/signedContractData", headers=headers, json=body)
    assert answer.status_code == 200, answer.text
    (content,) = answer.json()["CCPResponse"]["emaidContent"]
    assert content["messageDef"]["emaid"] == "ZZZZZ000000000"
    return response_bytes(content["messageDef"])


def refused_cars(pool: Pool, edition: str) -> Iterator[tuple[Car, bytes, str, str]]:
    """Vehicles that get no contract: the request, and the response code in both editions."""
    pki = pool.pki(edition)
    unknown = pool.car(edition)
    yield unknown, unknown.request(SESSION, AT), NO, "WARNING_NoContractMatchingPCIDFound"
    ended = pool.car(edition)
    pool.expire(pool.publish(ended).emaid)
    yield ended, ended.request(SESSION, AT), NO, WARN
    thief = pool.car(edition)
    forged = Car.from_credential(pki, again(pki, thief), thief.pcid).request(SESSION, AT)
    stolen: Any = exi.decode(thief.request(SESSION, AT))
    signed: Any = exi.decode(forged)
    mixed = exi.encode(stolen._replace(Header=stolen.Header._replace(Signature=signed.Header.Signature)))
    yield thief, mixed, "FAILED_SignatureError", "FAILED_SignatureError"
    old = expired_car(pki)
    yield old, old.request(SESSION, AT), "FAILED_CertificateExpired", "WARNING_CertificateExpired"
    if edition == "iso2":
        stranger = Car.generate(pool.pki("stranger"), new_pcid(), AT)
        yield stranger, stranger.request(SESSION, AT), "FAILED_CertChainError", "WARNING_CertificateValidationError"


@pytest.mark.parametrize("ask", [opnc, opcp])
@pytest.mark.parametrize("edition", EDITIONS)
def test_negative_message_is_readable_for_a_validating_ev(
    pool: Pool, pkis: dict[str, PKI], edition: str, ask: Callable[[Pool, Car, bytes], bytes]
) -> None:
    messages, wanted = [], []
    for car, request, code2, code20 in refused_cars(pool, edition):
        message = ask(pool, car, request)
        assert xml_schema.violations(edition, message) == []
        messages.append((edition, message))
        wanted.append(code2 if edition == "iso2" else code20)
    assert ev_stack.response_codes(messages) == wanted
