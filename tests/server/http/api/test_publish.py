"""AddSignedContractData: what is stored, and what is refused with which sentence."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from ccp.ids import check_digit
from ccp.testing.partners import Car
from tests.server.http.api.answers import sentences
from tests.server.http.api.publications import EDITIONS, bundle_of, refused, signed
from tests.world import AT, ISO20, Pool, new_emaid

# --- What is stored --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", EDITIONS)
def test_signed_contract_is_stored_and_answered_with_201_and_no_body(pool: Pool, edition: str) -> None:
    contract = pool.contract(pool.car(edition))
    answer = pool.emsp.put("/signedcontractdata", json=contract.body)
    assert (answer.status_code, answer.content) == (201, b"")
    assert answer.headers["x-trace-id"]
    assert pool.stored(contract.emaid) == 1


def test_publication_makes_the_first_contract_of_a_vehicle_its_default_alone(pool: Pool) -> None:
    car = pool.car()
    first, second = pool.publish(car), pool.publish(car, new_emaid("NLEXB"))
    assert {item["emaid"]: item["defaultContract"] for item in pool.listed(car)} == {
        first.emaid: True,
        second.emaid: False,
    }


def test_publication_of_a_variant_again_replaces_it_and_answers_201(pool: Pool) -> None:
    car = pool.car()
    first = pool.publish(car)
    second = pool.publish(car, first.emaid)
    assert first.certificate != second.certificate
    assert pool.stored(first.emaid) == 1
    (item,) = pool.signed(first.emaid, car).json()["signedContractDataCollection"]
    assert item["certificateInstallationRes"] == second.body["certificateInstallationRes"]
    assert [entry["defaultContract"] for entry in pool.listed(car)] == [True]


def test_contract_has_one_variant_for_each_namespace_and_v2g_root(pool: Pool) -> None:
    car = pool.car()
    other = Car.from_credential(pool.pki("iso20"), pool.pki("iso20").vehicle(car.pcid, now=AT), car.pcid)
    contract = pool.publish(car)
    pool.publish(car, contract.emaid, signer="other_iso2")
    pool.publish(other, contract.emaid)
    assert pool.stored(contract.emaid) == 3
    roots = {item["cpsV2GRootCertificateFingerprint"] for item in pool.listed(car)}
    assert roots == {pool.pki(name).v2g_root.certificate.fingerprint for name in ("iso2", "other_iso2")}
    assert [item["xsdMsgDefNamespace"] for item in pool.listed(other)] == [ISO20]
    assert all(item["defaultContract"] for item in (*pool.listed(car), *pool.listed(other)))


def test_publication_for_another_vehicle_moves_the_contract_with_all_its_variants(pool: Pool) -> None:
    old, new = pool.car(), pool.car()
    contract = pool.publish(old)
    pool.publish(old, contract.emaid, signer="other_iso2")
    stays = pool.publish(old)
    pool.publish(new, contract.emaid)
    assert [item["emaid"] for item in pool.listed(old)] == [stays.emaid]
    assert [item["emaid"] for item in pool.listed(new)] == [contract.emaid]
    assert pool.stored(contract.emaid) == 1
    # The old vehicle's default went; no other contract takes its place.
    assert [item["defaultContract"] for item in pool.listed(old)] == [False]


def test_metadata_of_a_contract_is_given_back(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car, body={"metaData": "für später"})
    (item,) = pool.signed(contract.emaid, car).json()["signedContractDataCollection"]
    assert item["metaData"] == "für später"


@pytest.mark.parametrize("metadata", ["\0", "before\0after", "at the end\0", "a line\n\0"])
def test_metadata_that_not_every_database_can_keep_is_refused(pool: Pool, metadata: str) -> None:
    contract = pool.contract(pool.car())
    assert refused(pool, contract, metaData=metadata) == ["metaData : must not contain U+0000"]
    assert pool.stored(contract.emaid) == 0


def test_publication_may_have_null_for_optional_members_and_unknown_members(pool: Pool) -> None:
    nulls = {"metaData": None, "cpsV2GRootCertificateFingerprint": None, "cpsRootDistinguishedName": None}
    contract = pool.publish(pool.car(), body={**nulls, "futureMember": {"a": [1]}})
    assert pool.stored(contract.emaid) == 1


@pytest.mark.parametrize("change", [str.lower, str.upper])
def test_v2g_root_may_be_named_in_either_case(pool: Pool, change: Any) -> None:
    fingerprint = pool.pki().v2g_root.certificate.fingerprint
    car = pool.car()
    contract = pool.publish(car, body={"cpsV2GRootCertificateFingerprint": change(fingerprint)})
    (item,) = pool.signed(contract.emaid, car).json()["signedContractDataCollection"]
    assert item["cpsV2GRootCertificateFingerprint"] == fingerprint.lower()


@pytest.mark.parametrize("alias", ["urn:iso:15118:20:2022:MsgDef", "urn:iso:std:iso:15118:-20:CommonMessages"])
def test_publication_with_the_namespace_alias_of_part_20_is_stored_canonically(pool: Pool, alias: str) -> None:
    car = pool.car("iso20")
    pool.publish(car, body={"xsdMsgDefNamespace": alias})
    assert [item["xsdMsgDefNamespace"] for item in pool.listed(car)] == [ISO20]


def test_emaid_and_pcid_are_canonicalised_and_the_message_is_left_as_it_is(pool: Pool) -> None:
    car = pool.car()
    emaid = new_emaid()
    spelled = f"{emaid[:2]}-{emaid[2:5]}-{emaid[5:]}-{check_digit(emaid)}".lower()
    contract = pool.publish(car, emaid, body={"emaid": spelled, "pcid": car.pcid.lower()})
    (item,) = pool.signed(emaid, car).json()["signedContractDataCollection"]
    assert (item["emaid"], item["pcid"]) == (emaid, car.pcid)
    assert item["certificateInstallationRes"] == contract.body["certificateInstallationRes"]


def test_message_may_spell_its_emaid_with_the_check_digit(pool: Pool) -> None:
    car, pki = pool.car(), pool.pki()
    bundle = bundle_of(pool, car, pki)
    spelled = replace(bundle, emaid=bundle.emaid + check_digit(bundle.emaid))  # type: ignore[arg-type]
    contract = replace(signed(pki, spelled, car), emaid=bundle.emaid)
    assert pool.cps.put("/signedcontractdata", json=contract.body).status_code == 201
    (item,) = pool.listed(car)
    assert item["emaid"] == bundle.emaid


def test_contract_certificate_may_also_lead_to_a_v2g_root(pool: Pool) -> None:
    pki = pool.pki()
    pool.publish(pool.car(), signer=replace(pki, emsp_sub2=pki.cps_sub2))


def test_publication_that_fails_leaves_the_stored_contract_as_it_was(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    refused(pool, pool.contract(car, contract.emaid, signer="stranger"))
    (item,) = pool.signed(contract.emaid, car).json()["signedContractDataCollection"]
    assert item["certificateInstallationRes"] == contract.body["certificateInstallationRes"]


def test_body_in_chunks_is_read_like_any_other(pool: Pool) -> None:
    contract = pool.contract(pool.car())
    encoded = json.dumps(contract.body).encode()
    chunks = (encoded[at : at + 100] for at in range(0, len(encoded), 100))
    answer = pool.cps.put("/signedcontractdata", content=chunks, headers={"Content-Type": "application/json"})
    assert answer.request.headers["transfer-encoding"] == "chunked"
    assert answer.status_code == 201


# --- Bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [b"", b"no", b"{", b'{"a":}', b"\xff\xfe", b"[]", b"null", b"5", b'"text"', b"[" * 9999]
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_body_that_is_no_json_object_is_refused_with_400(pool: Pool, method: str, body: bytes) -> None:
    answer = pool.client("everything").request(method, "/signedcontractdata", content=body)
    (sentence,) = sentences(answer, 400)
    assert sentence.startswith(
        ("The body is not JSON: ", "The body is not a JSON object: it is ", "The body is empty.")
    )


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_body_that_is_too_large_is_refused_with_413(pool: Pool, method: str, chunked: bool) -> None:
    encoded = b'{"emaid":"' + b"A" * pool.settings.max_body + b'"}'
    content: Any = (encoded[at : at + 65536] for at in range(0, len(encoded), 65536)) if chunked else encoded
    answer = pool.client("everything").request(method, "/signedcontractdata", content=content)
    (sentence,) = sentences(answer, 413)
    assert str(pool.settings.max_body) in sentence


# --- At the same time ------------------------------------------------------------------------------------------------


def test_publications_at_once_for_a_vehicle_leave_exactly_one_default(pool: Pool) -> None:
    car = pool.car()
    made = [pool.contract(car, new_emaid(provider)) for provider in ("DEEXA", "NLEXB") for _ in range(4)]
    pool.token("cps")
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda one: pool.cps.put("/signedcontractdata", json=one.body), made))
    assert {answer.status_code for answer in answers} == {201}
    assert {item["emaid"] for item in pool.listed(car)} == {one.emaid for one in made}
    assert sum(item["defaultContract"] for item in pool.listed(car)) == 1


def test_publications_of_a_contract_at_once_leave_it_with_one_vehicle(pool: Pool) -> None:
    cars = [pool.car(), pool.car()]
    emaid = new_emaid()
    made = [pool.contract(car, emaid) for car in cars * 4]
    pool.token("cps")
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda one: pool.cps.put("/signedcontractdata", json=one.body), made))
    assert {answer.status_code for answer in answers} == {201}
    assert sum(len(pool.listed(car)) for car in cars) == pool.stored(emaid) == 1
