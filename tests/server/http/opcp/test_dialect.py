"""OPCP is another way to say what OPNC says: same messages, same state, same rights."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from ccp.server.domain.contracts import SignedContract
from ccp.server.pool.peers import RegisteredPeers
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from ccp.verify import VerifiedInstallationRequest
from ccp.x509.certificates import Certificate
from tests.server.http.api.answers import sentences
from tests.server.http.opcp.requests import call
from tests.world import AT, ISO2, SESSION, Contract, Pool, new_emaid, new_pcid, post_body, read, start

EDITIONS = ["iso2", "iso20", "ed448"]


def deliver(pool: Pool, car: Car, headers: dict[str, str] | None = None, session: bytes = SESSION) -> dict[str, Any]:
    body = post_body(car.request(session, AT), str(car.namespace))
    answer = call(pool, "cpo", "POST", "/ccp/signedContractData", json=body, headers=headers or {})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert sorted(found) == ["CCPResponse", "xsdMsgDefNamespace"]
    assert found["xsdMsgDefNamespace"] == str(car.namespace)
    assert list(found["CCPResponse"]) == ["emaidContent"]
    (content,) = found["CCPResponse"]["emaidContent"]
    assert list(content) == ["messageDef"]
    message: dict[str, Any] = content["messageDef"]
    positive = ["cpsV2GRootCertificateFingerprint"] if message["emaid"] != "ZZZZZ000000000" else []
    assert sorted(message) == sorted(["certificateInstallationRes", "emaid", "metaData", *positive])
    assert all(isinstance(value, str) for value in message.values())
    return message


def listed(pool: Pool, car: Car, **query: str) -> list[dict[str, Any]]:
    query = {"xsdMsgDefNamespace": str(car.namespace), **query}
    answer = call(pool, "oem", "GET", f"/ccp/signedContractData/{car.pcid}", params=query)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["XMLContracts"]
    return items


def state(pool: Pool, contract: Contract) -> list[tuple[Any, ...]]:
    """What is stored of a contract, but for its ids and times."""
    return pool.sql(
        "select c.namespace, c.root_fingerprint, c.response, c.is_default, c.metadata, v.default_emaid = c.emaid, "
        "v.rev from contract c join vehicle v on v.pcid = c.pcid where c.emaid = ? order by 1, 2",
        str(contract.emaid),
    )


# --- The same messages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", EDITIONS)
def test_dialects_give_a_car_the_same_bytes(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    contract = pool.publish(car, body={"metaData": "about it"})
    for _ in range(5):  # In -20 the time of the answer is in it, so both have to fall into one second.
        (there,) = published(pool, car)
        here = deliver(pool, car)
        if here["certificateInstallationRes"] == there["certificateInstallationRes"]:
            break
    assert here["certificateInstallationRes"] == there["certificateInstallationRes"]
    assert (here["emaid"], here["metaData"]) == (contract.emaid, "about it")
    assert car.install(base64.b64decode(here["certificateInstallationRes"]), SESSION, AT)[0] == contract.emaid


def published(pool: Pool, car: Car) -> list[dict[str, Any]]:
    """The items of the other dialect."""
    answer = pool.post(car)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["signedContractDataCollection"]
    return items


@pytest.mark.parametrize("edition", EDITIONS)
def test_dialects_refuse_a_car_with_the_same_bytes(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    for _ in range(5):
        (there,) = published(pool, car)
        here = deliver(pool, car)
        if here["certificateInstallationRes"] == there["certificateInstallationRes"]:
            break
    assert here["certificateInstallationRes"] == there["certificateInstallationRes"]
    assert (here["emaid"], here["metaData"]) == ("ZZZZZ000000000", "No contract is stored for the vehicle.")


def test_car_that_takes_several_contracts_gets_one_and_is_told_that_none_is_left(pool: Pool) -> None:
    car = pool.car("iso20")
    first, second = pool.publish(car), pool.publish(car)
    assert len(pool.ask(car)) == 2
    here = deliver(pool, car)
    assert here["emaid"] == first.emaid
    assert read(here, str(car.namespace)).parsed.message.RemainingContractCertificateChains == 0
    (there, _) = pool.ask(car)
    assert read(there).parsed.message.RemainingContractCertificateChains == 1
    # The car's own wishes and the default decide which one it is.
    assert call(pool, "oem", "POST", f"/ccp/signedContractData/{car.pcid}/{second.emaid}/default").status_code == 200
    assert deliver(pool, car)["emaid"] == second.emaid


@pytest.mark.parametrize("edition", EDITIONS)
def test_dialect_lets_an_oem_pull_the_same_bytes(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    contract = pool.publish(car)
    query = {"xsdMsgDefNamespace": str(car.namespace)}
    path = f"/ccp/provideSignedContractData/{contract.emaid}/{car.pcid}"
    answer = call(pool, "oem", "GET", path, params=query)
    assert answer.json() == {
        "certificateInstallationRes": contract.body["certificateInstallationRes"],
        "xsdMsgDefNamespace": str(car.namespace),
        "cpsV2GRootCertificateFingerprint": pool.pki(edition).v2g_root.certificate.fingerprint,
    }
    answer = call(pool, "oem", "GET", path, params={**query, "sessionID": SESSION.hex()})
    message = base64.b64decode(answer.json()["certificateInstallationRes"])
    assert car.install(message, SESSION, AT)[0] == contract.emaid
    assert sentences(call(pool, "oem", "GET", f"/ccp/provideSignedContractData/{new_emaid()}/{car.pcid}"), 404)


# --- The same state --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", EDITIONS)
def test_dialect_leaves_the_same_state_after_publishing_and_choosing(pool: Pool, edition: str) -> None:
    stored = []
    for dialect in ("opnc", "opcp"):
        car = pool.car(edition)
        one, other = pool.contract(car, body={"metaData": "m"}), pool.contract(car)
        # Both publish the same bytes, for different vehicles; the comparison does not read the message.
        if dialect == "opnc":
            for contract in (one, other):
                assert pool.cps.put("/signedcontractdata", json=contract.body).status_code == 201
            assert pool.oem.post(f"/signedcontractdata/{other.emaid}/{car.pcid}/setdefault").status_code == 200
        else:
            for contract in (one, other):
                answer = call(pool, "cps", "PUT", "/ccp/signedContractData", json=contract.body)
                assert (answer.status_code, answer.content) == (201, b"")
            answer = call(pool, "oem", "POST", f"/ccp/signedContractData/{car.pcid}/{other.emaid}/default")
            assert (answer.status_code, answer.content) == (200, b"")
        stored.append(
            [
                [(*row[:2], row[2] == contract.message, *row[3:]) for row in state(pool, contract)]
                for contract in (one, other)
            ]
        )
    assert stored[0] == stored[1]
    assert [rows[0][3] for rows in stored[0]] == [0, 1]


def test_dialect_leaves_nothing_after_withdrawing(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    path = f"/ccp/signedContractData/{contract.emaid}"
    sentences(call(pool, "other_emsp", "DELETE", path), 403)
    assert pool.stored(contract.emaid) == 1
    assert call(pool, "emsp", "DELETE", path).status_code == 200
    assert pool.stored(contract.emaid) == 0
    assert sentences(call(pool, "emsp", "DELETE", path), 404) == ["The contract for the given EMAID not found."]


def test_dry_run_stores_nothing_here_either(pool: Pool) -> None:
    contract = pool.contract(pool.car())
    answer = call(pool, "cps", "PUT", "/ccp/signedContractData", json=contract.body, params={"dryRun": "true"})
    assert answer.json()["passed"] is True
    assert pool.stored(contract.emaid) == 0


# --- Lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_contracts_are_listed_by_priority(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    first, second, third = (pool.publish(car) for _ in range(3))
    item = next(item for item in listed(pool, car) if item["emaid"] == first.emaid)
    (published_state,) = [item for item in pool.listed(car) if item["emaid"] == first.emaid]
    assert item == {
        "pcid": car.pcid,
        "emaid": first.emaid,
        "xsdMsgDefNamespace": str(car.namespace),
        "contractCertificate": base64.b64encode(first.certificate).decode(),
        "defaultContract": True,
        "priority": 1,
        "cpsV2GRootCertificateFingerprint": published_state["cpsV2GRootCertificateFingerprint"],
        "cpsRootCertificateDN": published_state["cpsV2GRootDistinguishedName"],
        "cpsRootDistinguishedName": published_state["cpsV2GRootDistinguishedName"],
        "certValidFrom": published_state["certValidFrom"],
        "certValidTo": published_state["certValidTo"],
    }

    def priorities() -> dict[str, int]:
        return {item["emaid"]: item["priority"] for item in listed(pool, car)}

    assert priorities() == {first.emaid: 1, second.emaid: 2, third.emaid: 3}
    call(pool, "oem", "POST", f"/ccp/signedContractData/{car.pcid}/{third.emaid}/default")
    assert priorities() == {first.emaid: 2, second.emaid: 3, third.emaid: 1}
    # No other contract becomes the default when it goes, so none has its priority.
    assert call(pool, "emsp", "DELETE", f"/ccp/signedContractData/{third.emaid}").status_code == 200
    assert priorities() == {first.emaid: 2, second.emaid: 3}


def test_opcp_list_gives_variants_of_a_contract_one_priority_and_filters_by_root(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    pool.publish(car, contract.emaid, signer="other_iso2")
    other = pool.publish(car)
    assert sorted((item["emaid"], item["priority"]) for item in listed(pool, car)) == [
        *((contract.emaid, 1), (contract.emaid, 1), (other.emaid, 2)),
    ]
    root = pool.pki("other_iso2").v2g_root.certificate.fingerprint
    assert [item["emaid"] for item in listed(pool, car, cpsV2GRootCertificateFingerprint=root)] == [contract.emaid]
    path, query = f"/ccp/signedContractData/{car.pcid}", {"cpsV2GRootCertificateFingerprint": "0" * 64}
    assert sentences(call(pool, "oem", "GET", path, params=query), 404)


def test_dialect_lets_an_emsp_look_up_its_own_contract(pool: Pool) -> None:
    car = pool.car()
    contract, other = pool.publish(car), pool.publish(car)

    def priority(emaid: str) -> int:
        (item,) = call(pool, "emsp", "GET", f"/ccp/lookupContract/{emaid}").json()["XMLContracts"]
        assert item["pcid"] == car.pcid
        found: int = item["priority"]
        return found

    assert (priority(contract.emaid), priority(other.emaid)) == (1, 2)
    sentences(call(pool, "other_emsp", "GET", f"/ccp/lookupContract/{contract.emaid}"), 403)
    sentences(call(pool, "emsp", "GET", f"/ccp/lookupContract/{new_emaid()}"), 404)
    sentences(call(pool, "oem", "GET", f"/ccp/signedContractData/{new_pcid()}"), 404)


# --- Paths and rights ------------------------------------------------------------------------------------------------


def test_dialect_matches_fixed_parts_of_paths_and_ids_in_any_case(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    emaid, pcid = contract.emaid, car.pcid
    for party, method, path in (
        ("oem", "GET", f"/ccp/signedcontractdata/{pcid}"),
        ("oem", "GET", f"/CCP/SIGNEDCONTRACTDATA/{pcid.lower()}"),
        ("oem", "GET", f"/ccp/providesignedcontractdata/{emaid}/{pcid}"),
        ("oem", "POST", f"/ccp/signedcontractData/{pcid}/{emaid}/DEFAULT"),
        ("emsp", "GET", f"/Ccp/lookupcontract/{emaid.lower()}"),
        ("emsp", "GET", "/ROOT/rootcerts"),
        ("emsp", "DELETE", f"/ccp/signedCONTRACTdata/{emaid}"),
    ):
        assert call(pool, party, method, path).status_code == 200, path
    # The published dialect keeps its own spelling of the same words.
    pool.publish(car)
    assert pool.oem.get(f"/contractdata/PCID/{car.pcid}").status_code == 200
    sentences(call(pool, "oem", "GET", f"/ccp/contractData/pcid/{car.pcid}"), 404)


def test_ids_of_the_default_are_in_the_other_order(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    swapped = call(pool, "oem", "POST", f"/ccp/signedContractData/{contract.emaid}/{car.pcid}/default")
    sentences(swapped, 400)
    unknown = call(pool, "oem", "POST", f"/ccp/signedContractData/{car.pcid}/{new_emaid()}/default")
    assert sentences(unknown, 400) == ["The contract for the given EMAID and PCID not found."]


OEMS = {"oem", "other_oem", "everything"}
OPERATIONS = {
    "deliver": ("POST", "/ccp/signedContractData", {"cpo", "peer", "everything"}),
    "publish": ("PUT", "/ccp/signedContractData", {"emsp", "cps", "small_cps", "other_emsp", "everything"}),
    "list": ("GET", f"/ccp/signedContractData/{new_pcid()}", OEMS),
    "look up": ("GET", f"/ccp/lookupContract/{new_emaid()}", {"emsp", "other_emsp", "everything"}),
    "pull": ("GET", f"/ccp/provideSignedContractData/{new_emaid()}/{new_pcid()}", OEMS),
    "withdraw": ("DELETE", f"/ccp/signedContractData/{new_emaid()}", {"emsp", "other_emsp", "everything"}),
    "default": (
        "POST",
        f"/ccp/signedContractData/{new_pcid()}/{new_emaid()}/default",
        {"oem", "other_oem", "everything"},
    ),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_dialect_rights_are_those_that_are_published(pool: Pool, operation: str) -> None:
    method, path, allowed = OPERATIONS[operation]
    car = pool.car()
    body = {
        "deliver": post_body(car.request(SESSION, AT), ISO2),
        "publish": pool.contract(car, new_emaid("FRXXX")).body,
    }.get(operation)
    sentences(call(pool, None, method, path, json=body), 401)
    for member in pool.world.members:
        answer = call(pool, member.party.client_id, method, path, json=body)
        if member.party.client_id not in allowed:
            (sentence,) = sentences(answer, 403)
            assert "is for the role" in sentence
        elif answer.status_code == 403:  # Of the right kind, and not for that id.
            assert "is not registered for the caller" in sentences(answer, 403)[0]
        else:
            assert answer.status_code in (200, 201, 400, 404), answer.text


@pytest.mark.parametrize("operation", OPERATIONS)
def test_dialect_checks_whom_a_request_is_from_and_for(pool: Pool, operation: str) -> None:
    method, path, allowed = OPERATIONS[operation]
    party = min(allowed & {"cpo", "oem", "emsp"})
    (sentence,) = sentences(call(pool, party, method, path, headers={"OPNC-from-party-id": "FRYYY"}), 403)
    assert sentence.startswith("OPNC-from-party-id")
    elsewhere = {"OPNC-to-party-type": "ccp", "OPNC-to-party-id": "elsewhere"}
    messages = sentences(call(pool, party, method, path, headers=elsewhere), 400 if operation == "default" else 404)
    assert messages == ["No pool with the id in OPNC-to-party-id is known here."]


# --- Roots -----------------------------------------------------------------------------------------------------------


def roots(pool: Pool, party: str, **query: str) -> list[dict[str, str]]:
    answer = call(pool, party, "GET", "/root/rootCerts", params=query)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, str]] = answer.json()["RootCertificateCollection"]["rootCertificates"]
    return items


def test_dialect_gives_every_party_the_roots_that_the_pool_trusts(pool: Pool) -> None:
    trusted = {
        (pki.v2g_root.certificate.fingerprint, "V2G") for name, pki in pool.world.pkis.items() if name != "stranger"
    } | {
        (root.certificate.fingerprint, kind)
        for name, pki in pool.world.pkis.items()
        if name != "stranger"
        for root, kind in ((pki.emsp_root, "MO"), (pki.oem_root, "OEM"))
    }
    for member in pool.world.members:
        items = roots(pool, member.party.client_id)
        found = {(item["fingerprint"], item["rootType"]) for item in items}
        assert trusted <= found  # The server is shared: another test may have it trust more.
        rows = pool.sql("select fingerprint, role from trust_anchor where is_root")
        assert found <= {(fingerprint, {"v2g": "V2G", "emsp": "MO", "oem": "OEM"}[role]) for fingerprint, role in rows}
    assert len({item["rootCertificateId"] for item in items}) == len(items)
    sentences(call(pool, None, "GET", "/root/rootCerts"), 401)
    for item in items:
        if (item["fingerprint"], item["rootType"]) not in trusted:
            continue
        certificate = Certificate.load(base64.b64decode(item["caCertificate"], validate=True))
        assert item["commonName"] == certificate.subject_cn
        assert item["distinguishedName"] == certificate.subject_dn
        assert int(item["rootIssuerSerialNumber"], 16) == certificate.serial_number
        assert base64.b64decode(item["rootAuthorityKeyIdentifier"]) == certificate.key_identifier
        assert item["organizationName"] == "opnc-ccp simulator"
        assert item["validTo"] == certificate.not_after.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_roots_can_be_asked_for_by_their_type(pool: Pool) -> None:
    for asked, expected in (("V2G", "V2G"), ("v2g", "V2G"), ("MO", "MO"), ("eMSP", "MO"), ("OEM", "OEM")):
        items = roots(pool, "cpo", rootType=asked)
        assert {item["rootType"] for item in items} == {expected}
    assert roots(pool, "cpo", rootType="PE") == []
    sentences(call(pool, "cpo", "GET", "/root/rootCerts", params={"rootType": "TLS"}), 400)


# --- Other pools -----------------------------------------------------------------------------------------------------


class Recording(RegisteredPeers):
    asked: list[VerifiedInstallationRequest] = []  # noqa: RUF012  one for the test

    async def ask(self, request: VerifiedInstallationRequest, *rest: Any) -> list[tuple[SignedContract, bytes]]:
        self.asked.append(request)
        return []


@pytest.fixture
def recording(pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.setattr("ccp.server.app.RegisteredPeers", Recording)
    Recording.asked.clear()
    with start(pkis) as running:
        yield running


def test_broadcast_forbids_here_what_it_allows_in_the_published_dialect(recording: Pool) -> None:
    pool, car = recording, recording.car()

    def asked(dialect: str, headers: dict[str, str]) -> int:
        Recording.asked.clear()
        if dialect == "opcp":
            deliver(pool, car, headers)
        else:
            assert pool.post(car, headers=headers).status_code == 200
        return len(Recording.asked)

    assert asked("opcp", {}) == 1
    assert asked("opcp", {"broadcast": "false"}) == 1
    assert asked("opcp", {"broadcast": "true"}) == 0
    assert asked("opnc", {}) == 0
    assert asked("opnc", {"broadcast": "false"}) == 0
    assert asked("opnc", {"broadcast": "true"}) == 1


# --- Description -----------------------------------------------------------------------------------------------------


def test_dialect_is_described_under_a_tag_of_its_own(pool: Pool) -> None:
    paths = pool.http.get("/openapi.json").json()["paths"]
    described = {
        (method, path): operation
        for path, item in paths.items()
        for method, operation in item.items()
        if operation.get("tags") == ["OPCP"] and not path.startswith("/v1/webhook/")
    }
    assert set(described) == {
        ("post", "/v1/ccp/signedContractData"),
        ("put", "/v1/ccp/signedContractData"),
        ("get", "/v1/ccp/signedContractData/{id}"),
        ("delete", "/v1/ccp/signedContractData/{id}"),
        ("get", "/v1/ccp/lookupContract/{emaid}"),
        ("get", "/v1/ccp/provideSignedContractData/{emaid}/{pcid}"),
        ("post", "/v1/ccp/signedContractData/{pcid}/{emaid}/default"),
        ("get", "/v1/root/rootCerts"),
        ("get", "/v1/root/rootCerts/{rootCertificateId}"),
        ("get", "/v1/root/ctl"),
    }
    every = [operation["operationId"] for item in paths.values() for operation in item.values()]
    assert len(set(every)) == len(every)
    answer = described["post", "/v1/ccp/signedContractData"]["responses"]["200"]["content"]["application/json"]
    assert answer["schema"] == {"$ref": "#/components/schemas/OPCPSignedContractData"}
    assert "200" not in described["get", "/v1/root/ctl"]["responses"]
