"""The OPNC headers that say who a request is from and whom it is for, in front of every operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.server.http.api.answers import sentences
from tests.world import AT, SESSION, Pool, new_emaid, new_pcid, post_body

Call = Callable[[dict[str, str]], httpx.Response]


def calls(pool: Pool) -> dict[str, tuple[str, Call]]:
    """Every operation as a call that succeeds, with the type of the party that makes it."""
    car = pool.car()
    contract = pool.publish(car)
    doomed = pool.publish(car)
    request = post_body(car.request(SESSION, AT), str(car.namespace))

    def call(party: str, method: str, path: str, **options: Any) -> tuple[str, Call]:
        return party, lambda headers: pool.client(party).request(method, path, headers=headers, **options)

    return {
        "GetContractDataByEmaid": call("emsp", "GET", f"/contractData/emaid/{contract.emaid}"),
        "GetContractDataByPcid": call("oem", "GET", f"/contractData/pcid/{car.pcid}"),
        "Deliver": call("cpo", "POST", "/signedcontractdata", json=request),
        "AddSignedContractData": call("emsp", "PUT", "/signedcontractdata", json=contract.body),
        "GetSignedContractData": call("oem", "GET", f"/signedcontractdata/{contract.emaid}/{car.pcid}"),
        "SetDefault": call("oem", "POST", f"/signedcontractdata/{contract.emaid}/{car.pcid}/setdefault"),
        "Delete": call("emsp", "DELETE", f"/signedcontractdata/{doomed.emaid}"),
    }


OPERATIONS = [
    *("GetContractDataByEmaid", "GetContractDataByPcid", "Deliver", "AddSignedContractData"),
    *("GetSignedContractData", "SetDefault", "Delete"),
]
OWN_ID = {"emsp": "DEEXA", "oem": "WEX", "cpo": "DEEXC"}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_party_may_name_itself_and_whom_it_calls(pool: Pool, operation: str) -> None:
    party, call = calls(pool)[operation]
    headers = {
        "OPNC-from-party-type": party,
        "OPNC-from-party-id": OWN_ID[party],
        "OPNC-to-party-type": "emsp",
        "OPNC-to-party-id": "anything",
    }
    assert call(headers).is_success


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "headers",
    [
        {"OPNC-from-party-type": "ccp"},
        {"OPNC-from-party-type": "pki"},
        {"OPNC-from-party-id": "FRXXX"},
        {"OPNC-from-party-id": ""},
    ],
)
def test_party_that_names_another_one_is_refused(pool: Pool, operation: str, headers: dict[str, str]) -> None:
    _, call = calls(pool)[operation]
    (sentence,) = sentences(call(headers), 403)
    assert sentence.startswith(next(iter(headers)))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", ["OPNC-from-party-type", "OPNC-to-party-type"])
def test_party_type_that_does_not_exist_is_refused(pool: Pool, operation: str, name: str) -> None:
    _, call = calls(pool)[operation]
    for value in ("mo", "EMSP", ""):
        (sentence,) = sentences(call({name: value}), 400)
        assert sentence.startswith(f"{name} : ")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_request_for_a_pool_that_is_not_known_here_is_not_found(pool: Pool, operation: str) -> None:
    _, call = calls(pool)[operation]
    answer = call({"OPNC-to-party-type": "ccp", "OPNC-to-party-id": "elsewhere"})
    # The published SetSignedContractDataAsDefault knows no 404.
    messages = sentences(answer, 400 if operation == "SetDefault" else 404)
    assert messages == ["No pool with the id in OPNC-to-party-id is known here."]


@pytest.mark.parametrize("headers", [{"OPNC-to-party-type": "ccp"}, {"OPNC-to-party-id": "elsewhere"}])
def test_routing_headers_with_half_an_address_are_answered_here(pool: Pool, headers: dict[str, str]) -> None:
    _, call = calls(pool)["Deliver"]
    assert call(headers).is_success


@pytest.mark.parametrize("spelled", ["DEEXA", "de-exa", "DE-EXA"])
def test_party_id_of_our_own_may_have_a_hyphen_and_lower_case(pool: Pool, spelled: str) -> None:
    _, call = calls(pool)["GetContractDataByEmaid"]
    assert call({"OPNC-from-party-type": "emsp", "OPNC-from-party-id": spelled}).is_success
    assert call({"OPNC-from-party-id": spelled}).is_success


def test_party_id_of_an_operator_may_have_a_star(pool: Pool) -> None:
    _, call = calls(pool)["Deliver"]
    assert call({"OPNC-from-party-type": "cpo", "OPNC-from-party-id": "DE*EXC"}).is_success
    sentences(call({"OPNC-from-party-type": "cpo", "OPNC-from-party-id": "DE*EXD"}), 403)


def test_ids_of_a_provisioning_service_cannot_be_told_from_its_token(pool: Pool) -> None:
    contract = pool.contract(pool.car())
    headers = {"OPNC-from-party-type": "cps", "OPNC-from-party-id": "0" * 64}
    assert pool.cps.put("/signedcontractdata", json=contract.body, headers=headers).status_code == 201
    sentences(pool.emsp.put("/signedcontractdata", json=contract.body, headers=headers), 403)
    del headers["OPNC-from-party-type"]
    assert pool.cps.put("/signedcontractdata", json=contract.body, headers=headers).status_code == 201
    sentences(pool.emsp.put("/signedcontractdata", json=contract.body, headers=headers), 403)


def test_peer_pool_acts_for_others(pool: Pool) -> None:
    headers = {"OPNC-from-party-type": "cpo", "OPNC-from-party-id": "FRXYZ"}
    answer = pool.post(pool.car(), caller="peer", headers={**headers, "alwaysReturnEXI": "false"})
    assert answer.status_code == 404
    assert sentences(answer, 404) == ["No contract is stored for the vehicle."]


def test_header_names_are_matched_without_regard_to_case(pool: Pool) -> None:
    answer = pool.oem.get(f"/contractData/pcid/{new_pcid()}", headers={"opnc-FROM-party-TYPE": "emsp"})
    sentences(answer, 403)
    answer = pool.emsp.get(f"/contractData/emaid/{new_emaid()}", headers={"OPNC-FROM-PARTY-TYPE": "emsp"})
    sentences(answer, 404)
