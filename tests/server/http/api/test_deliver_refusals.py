"""Requests that get no contract, with the negative response or the status for each reason."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from ccp import exi
from ccp.exi import iso2
from ccp.testing.partners import Car
from ccp.testing.pki import PKI, algorithm_of
from tests.server.http.api.answers import sentences
from tests.server.http.api.negatives import EDITIONS, negative
from tests.world import (
    AT,
    ISO2,
    ISO20,
    SESSION,
    Pool,
    again,
    expired_car,
    new_pcid,
    post_body,
    read,
)

# --- Cars that get nothing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", EDITIONS)
def test_car_without_a_contract_is_told_so(pool: Pool, edition: str) -> None:
    code, reason = negative(pool, pool.car(edition))
    assert code == ("FAILED_NoCertificateAvailable" if edition == "iso2" else "WARNING_NoContractMatchingPCIDFound")
    assert reason == "No contract is stored for the vehicle."


@pytest.mark.parametrize("session", [b"", b"\7", b"\xff" * 8])
@pytest.mark.parametrize("edition", EDITIONS)
def test_negative_response_carries_the_session_of_the_request(pool: Pool, edition: str, session: bytes) -> None:
    negative(pool, pool.car(edition), session=session)


@pytest.mark.parametrize("edition", EDITIONS)
def test_car_whose_only_contract_has_expired_gets_none(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    pool.expire(pool.publish(car).emaid)
    code, reason = negative(pool, car)
    assert code == ("FAILED_NoCertificateAvailable" if edition == "iso2" else "WARNING_NoCertificateAvailable")
    assert "valid now" in reason


def test_contract_that_expires_while_it_waits_is_not_delivered_any_more(pool: Pool) -> None:
    car = pool.car()
    now = datetime.now(UTC).replace(microsecond=0)
    pool.publish(car, valid=(AT, now.fromtimestamp(now.timestamp() + 4, UTC)))
    assert len(pool.ask(car)) == 1
    # The contract expires in real time while the pool holds it.
    time.sleep(max(0.0, now.timestamp() + 5.1 - time.time()))
    assert negative(pool, car)[0] == "FAILED_NoCertificateAvailable"


def test_default_that_expired_does_not_block_the_only_valid_contract(pool: Pool) -> None:
    car = pool.car()
    default, other = pool.publish(car), pool.publish(car)
    pool.expire(default.emaid)
    assert [item["emaid"] for item in pool.ask(car)] == [other.emaid]


def test_delivery_does_not_replace_an_expired_default_by_one_of_several_contracts(pool: Pool) -> None:
    car = pool.car()
    default, _, _ = pool.publish(car), pool.publish(car), pool.publish(car)
    pool.expire(default.emaid)
    code, reason = negative(pool, car)
    assert (code, reason) == (
        "FAILED_NoCertificateAvailable",
        "The default contract of the vehicle cannot be delivered now.",
    )


def test_iso2_car_with_several_contracts_and_no_default_gets_none(pool: Pool) -> None:
    car = pool.car()
    default, _, _ = pool.publish(car), pool.publish(car), pool.publish(car)
    assert pool.emsp.delete(f"/signedcontractdata/{default.emaid}").status_code == 200
    assert negative(pool, car)[0] == "FAILED_NoCertificateAvailable"


@pytest.mark.parametrize(("has", "asks"), [("iso2", "iso20"), ("iso20", "iso2")])
def test_contract_for_the_other_edition_is_not_delivered(pool: Pool, has: str, asks: str) -> None:
    car = pool.car(has)
    pool.publish(car)
    other = Car.from_credential(pool.pki(asks), again(pool.pki(asks), car), car.pcid)
    code, reason = negative(pool, other)
    assert code == ("FAILED_NoCertificateAvailable" if asks == "iso2" else "WARNING_NoCertificateAvailable")
    assert "version of ISO 15118" in reason


@pytest.mark.parametrize("edition", EDITIONS)
def test_request_that_was_changed_after_signing_is_refused(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    pool.publish(car)
    message = exi.decode(car.request(SESSION, AT))
    if edition == "iso2":
        roots = (iso2.X509IssuerSerial("CN=Another Root", 7),)
        encoded = exi.encode(message._replace(Body=message.Body._replace(ListOfRootCertificateIDs=roots)))
    else:
        chain = message.OEMProvisioningCertificateChain
        chain = chain._replace(SubCertificates=(*chain.SubCertificates, chain.SubCertificates[0]))
        encoded = exi.encode(message._replace(OEMProvisioningCertificateChain=chain))
    code, reason = negative(pool, car, encoded)
    assert code == "FAILED_SignatureError"
    assert reason


@pytest.mark.parametrize("edition", EDITIONS)
def test_request_without_a_signature_is_refused(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    pool.publish(car)
    message = exi.decode(car.request(SESSION, AT))
    encoded = exi.encode(message._replace(Header=message.Header._replace(Signature=None)))
    assert negative(pool, car, encoded)[0] == "FAILED_SignatureError"


@pytest.mark.parametrize("edition", EDITIONS)
def test_request_signed_by_another_key_than_the_certificate_has_is_refused(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    pool.publish(car)
    thief = pool.car(edition)
    message, stolen = exi.decode(car.request(SESSION, AT)), exi.decode(thief.request(SESSION, AT))
    encoded = exi.encode(message._replace(Header=message.Header._replace(Signature=stolen.Header.Signature)))
    assert negative(pool, car, encoded)[0] == "FAILED_SignatureError"


@pytest.mark.parametrize("edition", EDITIONS)
def test_car_under_an_unknown_oem_root_is_refused_and_gets_no_contract(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    pool.publish(car)
    stranger = PKI.generate(AT, algorithm=algorithm_of(pool.pki(edition).oem_root.key))
    forged = Car.from_credential(stranger, again(stranger, car), car.pcid)
    code, _ = negative(pool, forged)
    assert code == ("FAILED_CertChainError" if edition == "iso2" else "WARNING_CertificateValidationError")


def test_iso20_request_with_leaf_only_is_verified_with_known_sub_cas(pool: Pool) -> None:
    car = pool.car("iso20")
    pool.publish(car)
    alone = replace(car, provisioning=replace(car.provisioning, sub_cas=()))
    assert len(pool.ask(alone)) == 1


def test_certificate_of_another_kind_cannot_ask_for_a_vehicle(pool: Pool) -> None:
    """A contract certificate that happens to be named like a vehicle."""
    pcid = new_pcid()
    pki = pool.pki()
    forged = Car.from_credential(pki, pki.contract(pcid, now=AT), pcid)
    assert negative(pool, forged)[0] == "FAILED_CertChainError"


@pytest.mark.parametrize("edition", EDITIONS)
def test_car_whose_provisioning_certificate_has_expired_is_refused(pool: Pool, edition: str) -> None:
    car = expired_car(pool.pki(edition))
    code, reason = negative(pool, car)
    assert code == ("FAILED_CertificateExpired" if edition == "iso2" else "WARNING_CertificateExpired")
    assert "expired" in reason


def test_delivery_uses_the_placeholder_for_a_certificate_without_pcid(pool: Pool) -> None:
    pki = pool.pki()
    pcid = new_pcid()
    nameless = Car.from_credential(pki, pki.vehicle("a vehicle without PCID", now=AT), pcid)
    answer = pool.post(nameless)
    (item,) = answer.json()["signedContractDataCollection"]
    assert (item["emaid"], item["pcid"]) == ("ZZZZZ000000000", "ZZZ00000000000000")
    assert read(item).response_code == "FAILED_CertChainError"


def test_certificate_that_is_any_other_bytes_is_answered_like_a_bad_chain(pool: Pool) -> None:
    car = pool.car()
    message = exi.decode(car.request(SESSION, AT))
    encoded = exi.encode(message._replace(Body=message.Body._replace(OEMProvisioningCert=b"\x30\x03no!")))
    (item,) = pool.cpo.post("/signedcontractdata", json=post_body(encoded, ISO2)).json()["signedContractDataCollection"]
    assert read(item).response_code == "FAILED_CertChainError"


# --- What cannot be read: there is no session to answer --------------------------------------------------------------


@pytest.mark.parametrize("always", ["true", "false"])
@pytest.mark.parametrize("text", ["", "%%%", "AAA", "AAAA=", "AAAA", "gJg="])
def test_exi_that_is_invalid_is_refused_with_400_whatever_is_asked_for(pool: Pool, text: str, always: str) -> None:
    body = {"certificateInstallationReq": text, "xsdMsgDefNamespace": ISO2}
    answer = pool.cpo.post("/signedcontractdata", json=body, headers={"alwaysReturnEXI": always})
    messages = sentences(answer, 400)
    assert messages[0] == "EXI format is invalid!"
    assert len(messages) == 2


@pytest.mark.parametrize("edition", EDITIONS)
def test_request_that_is_cut_off_or_goes_on_is_refused_with_400(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    encoded = car.request(SESSION, AT)
    for broken in (b"\x80", encoded[:4], encoded[:100], encoded[:-1], encoded + b"\1"):
        answer = pool.cpo.post("/signedcontractdata", json=post_body(broken, str(car.namespace)))
        assert sentences(answer, 400)[0] == "EXI format is invalid!"


@pytest.mark.parametrize("edition", EDITIONS)
def test_response_or_another_namespace_is_refused_with_400(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    for encoded, namespace in (
        (pool.contract(car).message, str(car.namespace)),
        (car.request(SESSION, AT), ISO20 if edition == "iso2" else ISO2),
    ):
        answer = pool.cpo.post("/signedcontractdata", json=post_body(encoded, namespace))
        assert sentences(answer, 400)[0] == "EXI format is invalid!"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, ["certificateInstallationReq : is missing", "xsdMsgDefNamespace : is missing"]),
        ({"xsdMsgDefNamespace": ISO2}, ["certificateInstallationReq : is missing"]),
        ({"certificateInstallationReq": "AAAA"}, ["xsdMsgDefNamespace : is missing"]),
        (
            {"certificateInstallationReq": "AAAA", "xsdMsgDefNamespace": "urn:iso:15118:2:2010:MsgDef"},
            [f"xsdMsgDefNamespace : must be one of {ISO2}, {ISO20}"],
        ),
    ],
)
def test_members_that_are_wrong_are_listed_together(pool: Pool, body: Any, expected: list[str]) -> None:
    assert sentences(pool.cpo.post("/signedcontractdata", json=body), 400) == expected


def test_metadata_of_a_request_is_open_for_the_future_but_text(pool: Pool) -> None:
    car = pool.car()
    pool.publish(car)
    body = {**post_body(car.request(SESSION, AT), ISO2), "metadata": "anything", "other": 1}
    assert pool.cpo.post("/signedcontractdata", json=body).status_code == 200
    assert sentences(pool.cpo.post("/signedcontractdata", json={**body, "metadata": 1}), 400)
