"""GetSignedContractDataByCertificateInstallationReq: what a car gets, and what it is told when it gets nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from ccp import exi
from ccp.exi import iso2
from ccp.ids import Namespace
from ccp.server.storage.queries import anchors
from ccp.server.trust.anchors import trusted_certificate
from ccp.testing.partners import Car
from ccp.testing.pki import PKI, algorithm_of
from tests.server.http.api.answers import sentences
from tests.world import (
    AT,
    ISO2,
    ISO20,
    SESSION,
    Pool,
    again,
    expired_car,
    new_emaid,
    new_pcid,
    post_body,
    read,
    response_bytes,
    start,
)

EDITIONS = ["iso2", "iso20", "ed448"]


def negative(pool: Pool, car: Car, encoded: bytes | None = None, session: bytes = SESSION) -> tuple[str, str]:
    """Ask for a car that must get nothing. Returns the response code of the message and the reason in words.

    The whole answer is checked in both of its forms.
    """
    body = post_body(encoded or car.request(session, AT), str(car.namespace))
    answer = pool.cpo.post("/signedcontractdata", json=body)
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["signedContractDataCollection"]
    assert sorted(item) == ["certificateInstallationRes", "emaid", "metaData", "pcid", "xsdMsgDefNamespace"]
    assert (item["emaid"], item["pcid"]) == ("ZZZZZ000000000", car.pcid)
    assert item["xsdMsgDefNamespace"] == str(car.namespace)
    message = exi.decode(response_bytes(item))
    assert message.Header.SessionID == session
    assert message.Header.Signature is None
    response = read(item)
    assert response.cps_certificate == response.contract_certificate == b"\0"
    lengths = (65, 48) if car.namespace is Namespace.ISO2 else (133, 94)
    assert (response.dh_public_key, response.encrypted_key) == tuple(map(bytes, lengths))
    if car.namespace is Namespace.ISO2:
        notification = message.Header.Notification
        assert notification.FaultCode == "UnknownError"
        assert 0 < len(notification.FaultMsg) <= 64
        assert message.Body.eMAID == iso2.EMAID("id4", "ZZZZZ000000000")
        assert message.Body.ContractSignatureEncryptedPrivateKey.Id == "id2"
        assert message.Body.DHpublickey.Id == "id3"
    else:
        assert abs(message.Header.TimeStamp - time.time()) < 60
        assert message.SignedInstallationData.Id == "id1"
        assert (message.EVSEProcessing, message.RemainingContractCertificateChains) == ("Finished", 0)
    bare = pool.cpo.post("/signedcontractdata", json=body, headers={"alwaysReturnEXI": "false"})
    assert sentences(bare, 404) == [item["metaData"]]
    return response.response_code, item["metaData"]


# --- Contracts that are delivered ------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_car_gets_its_contract_and_can_install_it(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    contract = pool.publish(car)
    (item,) = pool.ask(car)
    root = pool.pki(edition).v2g_root.certificate
    assert (item["emaid"], item["pcid"]) == (contract.emaid, car.pcid)
    assert item["xsdMsgDefNamespace"] == str(car.namespace)
    assert item["cpsV2GRootCertificateFingerprint"] == root.fingerprint
    assert item["cpsRootDistinguishedName"] == root.subject_dn
    assert car.install(response_bytes(item), SESSION, datetime.now(UTC))[0] == contract.emaid


@pytest.mark.parametrize("session", [b"", b"\0", b"\1\2\3", b"\xff" * 8])
@pytest.mark.parametrize("edition", EDITIONS)
def test_delivered_message_has_the_request_session_and_a_valid_signature(
    pool: Pool, edition: str, session: bytes
) -> None:
    car = pool.car(edition)
    contract = pool.publish(car)
    (item,) = pool.ask(car, session)
    car.install(response_bytes(item), session, datetime.now(UTC))
    sent, stored = exi.decode(response_bytes(item)), exi.decode(contract.message)
    if edition == "iso2":
        assert sent == stored._replace(Header=stored.Header._replace(SessionID=session))
    else:
        assert sent.SignedInstallationData == stored.SignedInstallationData
        assert sent.Header.Signature == stored.Header.Signature
        assert abs(sent.Header.TimeStamp - time.time()) < 60


def test_an_iso2_car_gets_one_item_only_and_it_is_the_default(pool: Pool) -> None:
    car = pool.car()
    pool.publish(car)
    second = pool.publish(car)
    pool.publish(car)
    assert pool.oem.post(f"/signedcontractdata/{second.emaid}/{car.pcid}/setdefault").status_code == 200
    assert [item["emaid"] for item in pool.ask(car)] == [second.emaid]


def test_a_car_gets_the_variant_under_the_v2g_root_that_it_lists(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    pool.publish(car, contract.emaid, signer="other_iso2")
    for name in ("iso2", "other_iso2", "iso2"):
        root = pool.pki(name).v2g_root.certificate
        (item,) = pool.ask(car, roots=(iso2.X509IssuerSerial(root.subject_dn, root.serial_number),))
        assert item["cpsV2GRootCertificateFingerprint"] == root.fingerprint


@pytest.mark.parametrize(
    "spelled",
    [
        "CN=V2G Root CA SIM, DC=V2G, O=opnc-ccp simulator, C=DE",
        "CN=V2G Root CA SIM,O=opnc-ccp simulator,C=DE,DC=V2G",
        "C=DE, O=opnc-ccp simulator, CN=V2G Root CA SIM, DC=V2G",
        "CN=V2G Root CA SIM, DC=V2G",
        "CN=V2G Root CA SIM",
    ],
)
def test_the_name_of_a_listed_root_may_be_spelled_in_several_ways(pool: Pool, spelled: str) -> None:
    car = pool.car()
    contract = pool.publish(car)
    pool.publish(car, contract.emaid, signer="other_iso2")  # The newest, which a car without a match would get.
    root = pool.pki().v2g_root.certificate
    (item,) = pool.ask(car, roots=(iso2.X509IssuerSerial(spelled, root.serial_number),))
    assert item["cpsV2GRootCertificateFingerprint"] == root.fingerprint


@pytest.mark.parametrize(("name", "more"), [("CN=Another Root", 0), (None, 1)])
def test_a_root_with_another_name_or_serial_number_is_not_the_listed_one(
    pool: Pool, name: str | None, more: int
) -> None:
    car = pool.car()
    contract = pool.publish(car)
    pool.publish(car, contract.emaid, signer="other_iso2")
    root = pool.pki().v2g_root.certificate
    (item,) = pool.ask(car, roots=(iso2.X509IssuerSerial(name or root.subject_dn, root.serial_number + more),))
    newest = pool.pki("other_iso2").v2g_root.certificate
    assert item["cpsV2GRootCertificateFingerprint"] == newest.fingerprint


def test_a_car_that_lists_no_known_root_gets_the_newest_variant(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car, signer="other_iso2")
    pool.publish(car, contract.emaid)
    (item,) = pool.ask(car, roots=(iso2.X509IssuerSerial("CN=Unknown Root", 1),))
    assert item["cpsV2GRootCertificateFingerprint"] == pool.pki().v2g_root.certificate.fingerprint
    pool.publish(car, contract.emaid, signer="other_iso2")
    (item,) = pool.ask(car, roots=(iso2.X509IssuerSerial("CN=Unknown Root", 1),))
    assert item["cpsV2GRootCertificateFingerprint"] == pool.pki("other_iso2").v2g_root.certificate.fingerprint


def test_the_only_contract_is_delivered_when_none_is_the_default(pool: Pool) -> None:
    car = pool.car()
    default, other = pool.publish(car), pool.publish(car)
    assert pool.emsp.delete(f"/signedcontractdata/{default.emaid}").status_code == 200
    assert [item["emaid"] for item in pool.ask(car)] == [other.emaid]


@pytest.mark.parametrize("alias", ["urn:iso:15118:20:2022:MsgDef", "urn:iso:std:iso:15118:-20:CommonMessages"])
def test_namespace_alias_is_accepted_and_answered_in_canonical_form(pool: Pool, alias: str) -> None:
    car = pool.car("iso20")
    pool.publish(car)
    answer = pool.cpo.post("/signedcontractdata", json=post_body(car.request(SESSION, AT), alias))
    (item,) = answer.json()["signedContractDataCollection"]
    assert "metaData" not in item
    assert item["xsdMsgDefNamespace"] == ISO20


@pytest.mark.parametrize("value", ["true", "false", "TRUE", "False"])
@pytest.mark.parametrize("name", ["alwaysReturnEXI", "ALWAYSRETURNEXI", "broadcast", "Broadcast"])
def test_the_headers_change_nothing_about_a_contract_that_is_there(pool: Pool, name: str, value: str) -> None:
    car = pool.car()
    pool.publish(car)
    assert len(pool.ask(car, headers={name: value})) == 1


@pytest.mark.parametrize("value", ["", "1", "0", "yes", "on", "null", "True, False"])
@pytest.mark.parametrize("name", ["alwaysReturnEXI", "broadcast"])
def test_a_header_that_is_neither_true_nor_false_is_refused(pool: Pool, name: str, value: str) -> None:
    answer = pool.post(pool.car(), headers={name: value})
    assert sentences(answer, 400) == [f"{name} : must be true or false"]


def test_a_peer_pool_may_ask_like_an_operator(pool: Pool) -> None:
    car = pool.car()
    pool.publish(car)
    assert len(pool.ask(car, caller="peer", headers={"broadcast": "false"})) == 1


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_stranger_gets_nothing_even_when_others_are_asked(pool: Pool, edition: str) -> None:
    answer = pool.post(pool.car(edition), headers={"broadcast": "true", "alwaysReturnEXI": "false"})
    sentences(answer, 404)


# --- ISO 15118-20: several contracts ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rich(pool: Pool) -> tuple[Car, list[str]]:
    """A car with five contracts, the third is its default. The EMAIDs from the oldest to the newest."""
    car = pool.car("iso20")
    providers = ("DEEXA", "NLEXB", "DEEXA", "NLEXB", "DEEXA")
    emaids = [str(pool.publish(car, new_emaid(provider)).emaid) for provider in providers]
    assert pool.oem.post(f"/signedcontractdata/{emaids[2]}/{car.pcid}/setdefault").status_code == 200
    return car, emaids


@pytest.mark.parametrize(
    ("maximum", "prioritised", "order"),
    [
        (5, (), (2, 0, 1, 3, 4)),
        (255, (), (2, 0, 1, 3, 4)),
        (1, (), (2,)),
        (3, (4, 1), (4, 1, 2)),
        (5, (4, 1), (4, 1, 2, 0, 3)),
        (1, (0, 4), (0,)),
        (2, (4, 4, 3), (4, 3)),
    ],
)
def test_iso20_delivery_order_is_prioritised_then_default_then_oldest(
    pool: Pool, rich: tuple[Car, list[str]], maximum: int, prioritised: tuple[int, ...], order: tuple[int, ...]
) -> None:
    car, emaids = rich
    items = pool.ask(car, max_chains=maximum, prioritized_emaids=tuple(emaids[place] for place in prioritised))
    assert [item["emaid"] for item in items] == [emaids[place] for place in order]
    remaining = [exi.decode(response_bytes(item)).RemainingContractCertificateChains for item in items]
    assert remaining == list(reversed(range(len(order))))
    for item in items:
        assert car.install(response_bytes(item), SESSION, datetime.now(UTC))[0] == item["emaid"]


def test_prioritized_emaids_accept_any_spelling_and_skip_invalid_or_unknown(
    pool: Pool, rich: tuple[Car, list[str]]
) -> None:
    car, emaids = rich
    spelled = f"{emaids[4][:2]}-{emaids[4][2:5]}-{emaids[4][5:]}".lower()
    wishes = ("no emaid at all", str(new_emaid()), spelled, "")
    assert pool.ask(car, max_chains=1, prioritized_emaids=wishes)[0]["emaid"] == emaids[4]


def test_a_car_that_takes_no_chain_at_all_gets_none(pool: Pool, rich: tuple[Car, list[str]]) -> None:
    car, _ = rich
    code, _ = negative(pool, car, car.request(SESSION, AT, max_chains=0))
    assert code == "WARNING_NoCertificateAvailable"


def test_a_contract_is_as_old_as_its_first_variant(pool: Pool) -> None:
    car = pool.car("iso20")
    default, second, third = (pool.publish(car).emaid for _ in range(3))
    other = PKI.generate(AT, algorithm="P-521")
    for role, certificate in other.trust_list():
        pool.change(anchors.add(trusted_certificate(certificate, role, "test", AT)))
    later = pool.contract(car, second, signer=other)
    deadline = time.monotonic() + 30
    while pool.cps.put("/signedcontractdata", json=later.body).status_code != 201:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    roots = tuple(
        iso2.X509IssuerSerial(root.subject_dn, root.serial_number)
        for root in (other.v2g_root.certificate, pool.pki("iso20").v2g_root.certificate)
    )
    assert [item["emaid"] for item in pool.ask(car, roots=roots)] == [default, second, third]
    pool.publish(car, third)
    assert [item["emaid"] for item in pool.ask(car)] == [default, second, third]


def test_an_expired_contract_is_left_out_of_several(pool: Pool) -> None:
    car = pool.car("iso20")
    first, second, third = (pool.publish(car).emaid for _ in range(3))
    pool.expire(second)
    items = pool.ask(car)
    assert [item["emaid"] for item in items] == [first, third]
    assert [exi.decode(response_bytes(item)).RemainingContractCertificateChains for item in items] == [1, 0]


# --- Cars that get nothing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_car_without_a_contract_is_told_so(pool: Pool, edition: str) -> None:
    code, reason = negative(pool, pool.car(edition))
    assert code == ("FAILED_NoCertificateAvailable" if edition == "iso2" else "WARNING_NoContractMatchingPCIDFound")
    assert reason == "No contract is stored for the vehicle."


@pytest.mark.parametrize("session", [b"", b"\7", b"\xff" * 8])
@pytest.mark.parametrize("edition", EDITIONS)
def test_a_negative_answer_carries_the_session_of_the_request(pool: Pool, edition: str, session: bytes) -> None:
    negative(pool, pool.car(edition), session=session)


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_car_whose_only_contract_has_expired_gets_none(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    pool.expire(pool.publish(car).emaid)
    code, reason = negative(pool, car)
    assert code == ("FAILED_NoCertificateAvailable" if edition == "iso2" else "WARNING_NoCertificateAvailable")
    assert "valid now" in reason


def test_a_contract_that_expires_while_it_waits_is_not_delivered_any_more(pool: Pool) -> None:
    car = pool.car()
    now = datetime.now(UTC).replace(microsecond=0)
    pool.publish(car, valid=(AT, now.fromtimestamp(now.timestamp() + 4, UTC)))
    assert len(pool.ask(car)) == 1
    time.sleep(max(0.0, now.timestamp() + 5.1 - time.time()))
    assert negative(pool, car)[0] == "FAILED_NoCertificateAvailable"


def test_expired_default_does_not_block_the_only_valid_contract(pool: Pool) -> None:
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


def test_an_iso2_car_with_several_contracts_and_no_default_gets_none(pool: Pool) -> None:
    car = pool.car()
    default, _, _ = pool.publish(car), pool.publish(car), pool.publish(car)
    assert pool.emsp.delete(f"/signedcontractdata/{default.emaid}").status_code == 200
    assert negative(pool, car)[0] == "FAILED_NoCertificateAvailable"


@pytest.mark.parametrize(("has", "asks"), [("iso2", "iso20"), ("iso20", "iso2")])
def test_a_contract_for_the_other_edition_is_not_delivered(pool: Pool, has: str, asks: str) -> None:
    car = pool.car(has)
    pool.publish(car)
    other = Car.from_credential(pool.pki(asks), again(pool.pki(asks), car), car.pcid)
    code, reason = negative(pool, other)
    assert code == ("FAILED_NoCertificateAvailable" if asks == "iso2" else "WARNING_NoCertificateAvailable")
    assert "version of ISO 15118" in reason


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_request_that_was_changed_after_signing_is_refused(pool: Pool, edition: str) -> None:
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
def test_a_request_without_a_signature_is_refused(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    pool.publish(car)
    message = exi.decode(car.request(SESSION, AT))
    encoded = exi.encode(message._replace(Header=message.Header._replace(Signature=None)))
    assert negative(pool, car, encoded)[0] == "FAILED_SignatureError"


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_request_signed_by_another_key_than_the_certificate_has_is_refused(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    pool.publish(car)
    thief = pool.car(edition)
    message, stolen = exi.decode(car.request(SESSION, AT)), exi.decode(thief.request(SESSION, AT))
    encoded = exi.encode(message._replace(Header=message.Header._replace(Signature=stolen.Header.Signature)))
    assert negative(pool, car, encoded)[0] == "FAILED_SignatureError"


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_car_under_an_unknown_oem_root_is_refused_and_gets_no_contract(pool: Pool, edition: str) -> None:
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


def test_a_certificate_of_another_kind_cannot_ask_for_a_vehicle(pool: Pool) -> None:
    """A contract certificate that happens to be named like a vehicle."""
    pcid = new_pcid()
    pki = pool.pki()
    forged = Car.from_credential(pki, pki.contract(pcid, now=AT), pcid)
    assert negative(pool, forged)[0] == "FAILED_CertChainError"


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_car_whose_provisioning_certificate_has_expired_is_refused(pool: Pool, edition: str) -> None:
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


def test_bytes_that_are_no_certificate_are_answered_like_a_bad_chain(pool: Pool) -> None:
    car = pool.car()
    message = exi.decode(car.request(SESSION, AT))
    encoded = exi.encode(message._replace(Body=message.Body._replace(OEMProvisioningCert=b"\x30\x03no!")))
    (item,) = pool.cpo.post("/signedcontractdata", json=post_body(encoded, ISO2)).json()["signedContractDataCollection"]
    assert read(item).response_code == "FAILED_CertChainError"


# --- What cannot be read: there is no session to answer --------------------------------------------------------------


@pytest.mark.parametrize("always", ["true", "false"])
@pytest.mark.parametrize("text", ["", "%%%", "AAA", "AAAA=", "AAAA", "gJg="])
def test_what_is_not_exi_is_refused_with_400_whatever_is_asked_for(pool: Pool, text: str, always: str) -> None:
    body = {"certificateInstallationReq": text, "xsdMsgDefNamespace": ISO2}
    answer = pool.cpo.post("/signedcontractdata", json=body, headers={"alwaysReturnEXI": always})
    messages = sentences(answer, 400)
    assert messages[0] == "EXI format is invalid!"
    assert len(messages) == 2


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_request_that_is_cut_off_or_goes_on_is_refused_with_400(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    encoded = car.request(SESSION, AT)
    for broken in (b"\x80", encoded[:4], encoded[:100], encoded[:-1], encoded + b"\1"):
        answer = pool.cpo.post("/signedcontractdata", json=post_body(broken, str(car.namespace)))
        assert sentences(answer, 400)[0] == "EXI format is invalid!"


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_response_or_another_namespace_is_refused_with_400(pool: Pool, edition: str) -> None:
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


# --- Pools with other settings ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start(pkis, root_match="strict", no_default_policy="none", vehicle_trust="signature") as running:
        yield running


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_under_strict_root_match_a_car_that_lists_no_known_root_gets_nothing(strict: Pool, edition: str) -> None:
    car = strict.car(edition)
    strict.publish(car)
    code, reason = negative(strict, car, car.request(SESSION, AT, roots=(iso2.X509IssuerSerial("CN=Unknown Root", 1),)))
    assert code == ("FAILED_NoCertificateAvailable" if edition == "iso2" else "WARNING_NoCertificateAvailable")
    assert reason
    assert len(strict.ask(car)) == 1


def test_policy_none_does_not_deliver_an_only_contract_that_is_not_the_default(strict: Pool) -> None:
    car = strict.car()
    default, other = strict.publish(car), strict.publish(car)
    assert strict.emsp.delete(f"/signedcontractdata/{default.emaid}").status_code == 200
    assert negative(strict, car)[0] == "FAILED_NoCertificateAvailable"
    assert strict.oem.post(f"/signedcontractdata/{other.emaid}/{car.pcid}/setdefault").status_code == 200
    assert len(strict.ask(car)) == 1


def test_vehicle_trust_signature_delivers_to_a_vehicle_under_an_unknown_root(
    strict: Pool, pkis: dict[str, PKI]
) -> None:
    car = Car.from_credential(pkis["stranger"], pkis["stranger"].vehicle(pcid := new_pcid(), now=AT), pcid)
    strict.publish(car, signer="iso2")
    root = strict.pki().v2g_root.certificate
    listed = (iso2.X509IssuerSerial(root.subject_dn, root.serial_number),)
    assert len(strict.ask(car, roots=listed)) == 1


def test_where_the_signature_alone_is_asked_for_it_still_has_to_hold(strict: Pool) -> None:
    car, thief = strict.car(), strict.car()
    strict.publish(car)
    message, stolen = exi.decode(car.request(SESSION, AT)), exi.decode(thief.request(SESSION, AT))
    encoded = exi.encode(message._replace(Header=message.Header._replace(Signature=stolen.Header.Signature)))
    assert negative(strict, car, encoded)[0] == "FAILED_SignatureError"
    assert negative(strict, expired_car(strict.pki()))[0] == "FAILED_CertificateExpired"
