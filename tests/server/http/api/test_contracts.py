"""The other five operations: contract data by EMAID and PCID, signed contracts, deleting, setting the default."""

from __future__ import annotations

import base64
from datetime import datetime

import pytest

from ccp import exi
from ccp.ids import check_digit
from ccp.testing.partners import Car
from tests.server.http.api.answers import sentences
from tests.world import AT, ISO2, ISO20, Pool, again, new_emaid, new_pcid, response_bytes

EDITIONS = ["iso2", "iso20", "ed448"]
NOT_FOUND = "The contract for the given EMAID not found."


def spellings(emaid: str) -> list[str]:
    digit = check_digit(emaid)
    dashed = f"{emaid[:2]}-{emaid[2:5]}-{emaid[5:]}"
    return [emaid, emaid.lower(), dashed, emaid + digit, f"{dashed}-{digit}".lower()]


# --- GetContractDataByEmaid and GetContractDataByPcid ----------------------------------------------------------------


@pytest.mark.parametrize("edition", EDITIONS)
def test_contract_data_says_what_is_known_of_a_contract(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    contract = pool.publish(car)
    root = pool.pki(edition).v2g_root.certificate
    query = {"xsdMsgDefNamespace": str(car.namespace)}
    answer = pool.emsp.get(f"/contractData/emaid/{contract.emaid}", params=query)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    (item,) = answer.json()["contractDataCollection"]
    assert base64.b64decode(item.pop("contractCertificate")) == contract.certificate
    begins, ends = (datetime.fromisoformat(item.pop(name)) for name in ("certValidFrom", "certValidTo"))
    assert begins < AT < ends
    assert item == {
        "pcid": car.pcid,
        "emaid": contract.emaid,
        "xsdMsgDefNamespace": str(car.namespace),
        "defaultContract": True,
        "cpsV2GRootDistinguishedName": root.subject_dn,
        "cpsV2GRootCertificateFingerprint": root.fingerprint,
    }
    assert pool.oem.get(f"/contractData/pcid/{car.pcid}", params=query).json() == answer.json()


def test_namespace_is_iso2_unless_another_is_asked_for(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    other = Car.from_credential(pool.pki("iso20"), again(pool.pki("iso20"), car), car.pcid)
    pool.publish(other, contract.emaid)
    for path in (f"/contractData/pcid/{car.pcid}", f"/signedcontractdata/{contract.emaid}/{car.pcid}"):
        for query, namespace in (
            ({}, ISO2),
            ({"xsdMsgDefNamespace": ISO2}, ISO2),
            ({"xsdMsgDefNamespace": ISO20}, ISO20),
        ):
            ((item,),) = pool.oem.get(path, params=query).json().values()
            assert item["xsdMsgDefNamespace"] == namespace
    ((item,),) = pool.emsp.get(f"/contractData/emaid/{contract.emaid}").json().values()
    assert item["xsdMsgDefNamespace"] == ISO2


@pytest.mark.parametrize("alias", ["urn:iso:15118:20:2022:MsgDef", "urn:iso:std:iso:15118:-20:CommonMessages"])
def test_namespace_alias_is_understood_in_every_reading(pool: Pool, alias: str) -> None:
    car = pool.car("iso20")
    contract = pool.publish(car)
    query = {"xsdMsgDefNamespace": alias}
    for client, path in (
        (pool.emsp, f"/contractData/emaid/{contract.emaid}"),
        (pool.oem, f"/contractData/pcid/{car.pcid}"),
        (pool.oem, f"/signedcontractdata/{contract.emaid}/{car.pcid}"),
    ):
        ((item,),) = client.get(path, params=query).json().values()
        assert item["xsdMsgDefNamespace"] == ISO20


@pytest.mark.parametrize("namespace", ["", "iso2", "urn:iso:15118:2:2010:MsgDef", "URN:ISO:15118:2:2013:MSGDEF"])
def test_namespace_that_is_unknown_is_refused_in_every_reading(pool: Pool, namespace: str) -> None:
    for client, path in (
        (pool.emsp, f"/contractData/emaid/{new_emaid()}"),
        (pool.oem, f"/contractData/pcid/{new_pcid()}"),
        (pool.oem, f"/signedcontractdata/{new_emaid()}/{new_pcid()}"),
    ):
        answer = client.get(path, params={"xsdMsgDefNamespace": namespace})
        assert sentences(answer, 400) == [f"xsdMsgDefNamespace : must be one of {ISO2}, {ISO20}"]


@pytest.mark.parametrize("change", [str.lower, str.upper])
def test_fingerprint_of_a_root_chooses_among_the_variants(pool: Pool, change) -> None:  # type: ignore[no-untyped-def]
    car = pool.car()
    contract = pool.publish(car)
    pool.publish(car, contract.emaid, signer="other_iso2")
    for client, path in (
        (pool.emsp, f"/contractData/emaid/{contract.emaid}"),
        (pool.oem, f"/signedcontractdata/{contract.emaid}/{car.pcid}"),
    ):
        ((newest, oldest),) = client.get(path).json().values()
        for item in (newest, oldest):
            query = {"cpsV2GRootCertificateFingerprint": change(item["cpsV2GRootCertificateFingerprint"])}
            assert client.get(path, params=query).json().popitem()[1] == [item]
        assert newest["cpsV2GRootCertificateFingerprint"] == pool.pki("other_iso2").v2g_root.certificate.fingerprint
        assert sentences(client.get(path, params={"cpsV2GRootCertificateFingerprint": "0" * 64}), 404) == [NOT_FOUND]
        for broken in ("", "0" * 63, "0" * 65, "g" * 64):
            answer = client.get(path, params={"cpsV2GRootCertificateFingerprint": broken})
            assert sentences(answer, 400) == ['cpsV2GRootCertificateFingerprint : must match "^[0-9a-fA-F]{64}$"']


def test_contracts_of_a_vehicle_are_all_listed_whoever_owns_them(pool: Pool) -> None:
    car = pool.car()
    emaids = {pool.publish(car, new_emaid(provider)).emaid for provider in ("DEEXA", "NLEXB", "DEEXA")}
    assert {item["emaid"] for item in pool.listed(car)} == emaids
    assert sum(item["defaultContract"] for item in pool.listed(car)) == 1


def test_contract_that_expired_is_still_shown_to_those_it_belongs_to(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    pool.expire(contract.emaid)
    assert len(pool.listed(car)) == 1
    assert pool.emsp.get(f"/contractData/emaid/{contract.emaid}").status_code == 200
    assert pool.signed(contract.emaid, car).status_code == 200


# --- Ids in paths ----------------------------------------------------------------------------------------------------


def test_emaid_in_a_path_may_be_spelled_in_every_way(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    for spelled in spellings(contract.emaid):
        assert pool.emsp.get(f"/contractData/emaid/{spelled}").status_code == 200
        for pcid in (car.pcid, car.pcid.lower()):
            assert pool.oem.get(f"/signedcontractdata/{spelled}/{pcid}").status_code == 200
            assert pool.oem.post(f"/signedcontractdata/{spelled}/{pcid}/setdefault").status_code == 200
    assert pool.oem.get(f"/contractData/pcid/{car.pcid.lower()}").status_code == 200
    assert pool.emsp.delete(f"/signedcontractdata/{spellings(contract.emaid)[-1]}").status_code == 200


def test_emaid_with_a_wrong_check_digit_is_another_emaid(pool: Pool) -> None:
    contract = pool.publish(pool.car())
    wrong = "1" if check_digit(contract.emaid) == "0" else "0"
    sentences(pool.emsp.get(f"/contractData/emaid/{contract.emaid}{wrong}"), 404)


def test_pcids_of_seventeen_and_of_eighteen_characters_are_different_vehicles(pool: Pool) -> None:
    car = pool.car()
    pool.publish(car)
    assert len(car.pcid) == 17
    sentences(pool.oem.get(f"/contractData/pcid/{car.pcid}0"), 404)


@pytest.mark.parametrize(
    "emaid", ["DEEXAC1234567", "D1EXAC12345678", "DEEXAC1234567%C3%A4", "DEEXA%2FC12345678", "%00" * 14]
)
def test_emaid_that_is_invalid_in_a_path_is_refused(pool: Pool, emaid: str) -> None:
    pcid = new_pcid()
    for client, method, path in (
        (pool.emsp, "GET", f"/contractData/emaid/{emaid}"),
        (pool.emsp, "DELETE", f"/signedcontractdata/{emaid}"),
        (pool.oem, "GET", f"/signedcontractdata/{emaid}/{pcid}"),
        (pool.oem, "POST", f"/signedcontractdata/{emaid}/{pcid}/setdefault"),
    ):
        answer = client.request(method, path)
        assert sentences(answer, 400) == ['emaid : must match "^[A-Za-z]{2}[-]?\\w{3}[-]?\\w{9,28}[-]?(\\w{1})?$"']


@pytest.mark.parametrize("pcid", ["WEX0", "WEX0TEST-00000000", "WEX0TEST%2F0000000", "WEX0TEST000000000ab"])
def test_pcid_that_is_invalid_in_a_path_is_refused(pool: Pool, pcid: str) -> None:
    emaid = new_emaid()
    for method, path in (
        ("GET", f"/contractData/pcid/{pcid}"),
        ("GET", f"/signedcontractdata/{emaid}/{pcid}"),
        ("POST", f"/signedcontractdata/{emaid}/{pcid}/setdefault"),
    ):
        assert sentences(pool.oem.request(method, path), 400) == ['pcid : must match "^[a-zA-Z0-9]{17,18}$"']


def test_errors_of_a_request_are_listed_together(pool: Pool) -> None:
    query = {"sessionID": "0", "xsdMsgDefNamespace": "x", "cpsV2GRootCertificateFingerprint": "y"}
    headers = {"OPNC-from-party-type": "x", "OPNC-to-party-type": "y"}
    messages = sentences(pool.oem.get("/signedcontractdata/e/p", params=query, headers=headers), 400)
    fields = {message.split(" : ")[0] for message in messages}
    assert fields == {"emaid", "pcid", *query, *headers}


@pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
def test_path_segments_that_are_fixed_are_matched_without_regard_to_case(pool: Pool, change) -> None:  # type: ignore[no-untyped-def]
    car = pool.car()
    contract = pool.contract(car)
    every, base = pool.base_url, change("/opnc/v1/ccp")
    assert pool.cps.put(f"{every}{base}{change('/signedContractData')}", json=contract.body).status_code == 201
    for client, path in (
        (pool.emsp, f"{change('/contractData/emaid')}/{contract.emaid}"),
        (pool.oem, f"{change('/contractData/pcid')}/{car.pcid}"),
        (pool.oem, f"{change('/signedContractData')}/{contract.emaid}/{car.pcid}"),
    ):
        assert client.get(every + base + path).status_code == 200
    path = f"{change('/signedContractData')}/{contract.emaid}"
    assert pool.oem.post(f"{every}{base}{path}/{car.pcid}{change('/setDefault')}").status_code == 200
    assert pool.emsp.delete(every + base + path).status_code == 200


# --- GetSignedContractDataByEmaidAndPcid -----------------------------------------------------------------------------


@pytest.mark.parametrize("edition", EDITIONS)
def test_oem_gets_the_signed_contract_of_its_vehicle(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    contract = pool.publish(car)
    root = pool.pki(edition).v2g_root.certificate
    answer = pool.signed(contract.emaid, car)
    assert answer.status_code == 200
    assert answer.json() == {
        "signedContractDataCollection": [
            {
                "certificateInstallationRes": contract.body["certificateInstallationRes"],
                "emaid": contract.emaid,
                "pcid": car.pcid,
                "xsdMsgDefNamespace": str(car.namespace),
                "cpsV2GRootCertificateFingerprint": root.fingerprint,
                "cpsRootDistinguishedName": root.subject_dn,
            }
        ]
    }


@pytest.mark.parametrize("session", ["00", "0a", "0A0b0C", "ffffffffffffffff", "0000000000000000"])
@pytest.mark.parametrize("edition", EDITIONS)
def test_session_id_is_put_into_the_message_which_the_car_still_accepts(pool: Pool, edition: str, session: str) -> None:
    car = pool.car(edition)
    contract = pool.publish(car)
    (item,) = pool.signed(contract.emaid, car, sessionID=session).json()["signedContractDataCollection"]
    assert exi.decode(response_bytes(item)).Header.SessionID == bytes.fromhex(session)
    assert car.install(response_bytes(item), bytes.fromhex(session), AT)[0] == contract.emaid


def test_session_id_that_is_empty_leaves_the_message_as_it_was_published(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    for query in ("?sessionID=", "?sessionID", ""):
        answer = pool.oem.get(f"/signedcontractdata/{contract.emaid}/{car.pcid}{query}")
        (item,) = answer.json()["signedContractDataCollection"]
        assert response_bytes(item) == contract.message


@pytest.mark.parametrize("session", ["0", "000", "00" * 9, "0g", "zz", "0x00", " 00", "٠٠", "00\n", "-1"])
def test_session_id_that_is_not_at_most_eight_bytes_in_hexadecimal_is_refused(pool: Pool, session: str) -> None:
    car = pool.car()
    (sentence,) = sentences(pool.signed(new_emaid(), car, sessionID=session), 400)
    assert sentence.startswith("sessionID : ")


def test_variants_all_come_newest_first(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    pool.publish(car, contract.emaid, signer="other_iso2")

    def order() -> list[str]:
        items = pool.signed(contract.emaid, car).json()["signedContractDataCollection"]
        return [item["cpsV2GRootCertificateFingerprint"] for item in items]

    one, other = (pool.pki(name).v2g_root.certificate.fingerprint for name in ("iso2", "other_iso2"))
    assert order() == [other, one]
    pool.publish(car, contract.emaid)
    assert order() == [one, other]


def test_contract_of_another_vehicle_is_not_found(pool: Pool) -> None:
    contract = pool.publish(pool.car())
    assert sentences(pool.signed(contract.emaid, pool.car()), 404) == [NOT_FOUND]


# --- DeleteSignedContractDataByEmaid ---------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"X-Skip-Revocation": "true"}, {"x-skip-revocation": "False"}])
def test_withdraw_of_a_contract_takes_all_its_variants(pool: Pool, headers: dict[str, str]) -> None:
    car = pool.car()
    other = Car.from_credential(pool.pki("iso20"), again(pool.pki("iso20"), car), car.pcid)
    contract = pool.publish(car)
    pool.publish(car, contract.emaid, signer="other_iso2")
    pool.publish(other, contract.emaid)
    answer = pool.emsp.delete(f"/signedcontractdata/{contract.emaid}", headers=headers)
    assert (answer.status_code, answer.content) == (200, b"")
    assert pool.stored(contract.emaid) == 0
    assert sentences(pool.emsp.get(f"/contractData/emaid/{contract.emaid}"), 404) == [NOT_FOUND]
    assert sentences(pool.emsp.delete(f"/signedcontractdata/{contract.emaid}"), 404) == [NOT_FOUND]


@pytest.mark.parametrize("value", ["", "1", "yes", "skip"])
def test_skip_revocation_is_asked_for_by_true_or_false_only(pool: Pool, value: str) -> None:
    contract = pool.publish(pool.car())
    answer = pool.emsp.delete(f"/signedcontractdata/{contract.emaid}", headers={"X-Skip-Revocation": value})
    assert sentences(answer, 400) == ["X-Skip-Revocation : must be true or false"]
    assert pool.stored(contract.emaid) == 1


def test_withdraw_of_the_default_makes_no_other_contract_the_default(pool: Pool) -> None:
    car = pool.car()
    default, other = pool.publish(car), pool.publish(car)
    assert pool.emsp.delete(f"/signedcontractdata/{default.emaid}").status_code == 200
    assert [(item["emaid"], item["defaultContract"]) for item in pool.listed(car)] == [(other.emaid, False)]
    third = pool.publish(car, new_emaid("NLEXB"))
    assert not any(item["defaultContract"] for item in pool.listed(car))
    assert {item["emaid"] for item in pool.listed(car)} == {other.emaid, third.emaid}


def test_vehicle_that_lost_all_its_contracts_starts_anew(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    assert pool.emsp.delete(f"/signedcontractdata/{contract.emaid}").status_code == 200
    assert pool.listed(car) == []
    pool.publish(car, contract.emaid)
    assert [item["defaultContract"] for item in pool.listed(car)] == [True]


# --- SetSignedContractDataAsDefault ----------------------------------------------------------------------------------


def test_setting_the_default_moves_it_for_all_variants_and_may_be_repeated(pool: Pool) -> None:
    car = pool.car()
    first, second = pool.publish(car), pool.publish(car)
    pool.publish(car, second.emaid, signer="other_iso2")
    for _ in range(2):
        answer = pool.oem.post(f"/signedcontractdata/{second.emaid}/{car.pcid}/setdefault")
        assert (answer.status_code, answer.content) == (200, b"")
        flags = {(item["emaid"], item["defaultContract"]) for item in pool.listed(car)}
        assert flags == {(first.emaid, False), (second.emaid, True)}
        assert pool.ask(car)[0]["emaid"] == second.emaid


def test_default_that_is_replaced_stays_the_default(pool: Pool) -> None:
    car = pool.car()
    first, second = pool.publish(car), pool.publish(car)
    assert pool.oem.post(f"/signedcontractdata/{second.emaid}/{car.pcid}/setdefault").status_code == 200
    pool.publish(car, second.emaid)
    pool.publish(car, first.emaid)
    pool.publish(car, second.emaid, signer="other_iso2")
    assert {item["emaid"] for item in pool.listed(car) if item["defaultContract"]} == {second.emaid}


def test_set_default_of_an_unknown_pair_is_400(pool: Pool) -> None:
    car, other = pool.car(), pool.car()
    contract = pool.publish(car)
    pool.publish(other)
    for emaid, pcid in ((contract.emaid, other.pcid), (new_emaid(), car.pcid), (new_emaid(), new_pcid())):
        answer = pool.oem.post(f"/signedcontractdata/{emaid}/{pcid}/setdefault")
        assert sentences(answer, 400) == ["The contract for the given EMAID and PCID not found."]
    assert [item["defaultContract"] for item in pool.listed(car)] == [True]
