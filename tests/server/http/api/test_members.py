"""Every member of the answers about contracts, and of requests for them, in both dialects.

The tables in docs/conformance-opnc.md and docs/conformance-opcp.md refer to these tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from ccp.server.http.routes.opnc import BASE
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.scripted_server import Reply, Scripted, scripted
from tests.server.http.api.answers import sentences
from tests.world import AT, SESSION, Contract, Pool, b64, new_emaid, new_pcid, post_body, read, response_bytes, start

EDITIONS = ["iso2", "iso20", "ed448"]
every_edition = pytest.mark.parametrize("edition", EDITIONS)
DIALECTS = ["opnc", "opcp"]
every_dialect = pytest.mark.parametrize("dialect", DIALECTS)
PATHS = {
    ("opnc", "by emaid"): BASE + "/contractData/emaid/{emaid}",
    ("opnc", "by pcid"): BASE + "/contractData/pcid/{pcid}",
    ("opnc", "deliver"): BASE + "/signedcontractdata",
    ("opnc", "publish"): BASE + "/signedcontractdata",
    ("opnc", "fetch"): BASE + "/signedcontractdata/{emaid}/{pcid}",
    ("opnc", "set default"): BASE + "/signedcontractdata/{emaid}/{pcid}/setdefault",
    ("opnc", "withdraw"): BASE + "/signedcontractdata/{emaid}",
    ("opcp", "by emaid"): "/v1/ccp/lookupContract/{emaid}",
    ("opcp", "by pcid"): "/v1/ccp/signedContractData/{pcid}",
    ("opcp", "deliver"): "/v1/ccp/signedContractData",
    ("opcp", "publish"): "/v1/ccp/signedContractData",
    ("opcp", "fetch"): "/v1/ccp/provideSignedContractData/{emaid}/{pcid}",
    ("opcp", "set default"): "/v1/ccp/signedContractData/{pcid}/{emaid}/default",
    ("opcp", "withdraw"): "/v1/ccp/signedContractData/{emaid}",
}


def send(pool: Pool, party: str, method: str, path: str, **options: Any) -> Any:
    headers = {"Authorization": f"Bearer {pool.token(party)}", **options.pop("headers", {})}
    answer = pool.http.request(method, path, headers=headers, **options)
    return answer


def ok(answer: Any) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def stored(pool: Pool, edition: str) -> tuple[Car, Contract, dict[str, Any]]:
    """A car, its contract, and the values of the members by their OPNC names."""
    car = pool.car(edition)
    contract = pool.publish(car, body={"metaData": "about it"})
    root = pool.pki(edition).v2g_root.certificate
    ((valid_from, valid_to),) = pool.sql(
        "select valid_from, valid_to from contract where emaid = ?", str(contract.emaid)
    )
    times = (datetime.fromtimestamp(int(value), UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for value in (valid_from, valid_to))
    return car, contract, {"root": root.fingerprint, "dn": root.subject_dn, "valid": tuple(times)}


def contract_data(car: Car, contract: Contract, values: dict[str, Any]) -> dict[str, Any]:
    return {
        "pcid": car.pcid,
        "emaid": contract.emaid,
        "xsdMsgDefNamespace": str(car.namespace),
        "contractCertificate": b64(contract.certificate),
        "defaultContract": True,
        "certValidFrom": values["valid"][0],
        "certValidTo": values["valid"][1],
        "cpsV2GRootCertificateFingerprint": values["root"],
    }


@every_edition
@pytest.mark.parametrize("operation", ["by emaid", "by pcid"])
def test_opnc_contract_data_has_every_published_member(pool: Pool, edition: str, operation: str) -> None:
    car, contract, values = stored(pool, edition)
    path = PATHS["opnc", operation].format(emaid=contract.emaid, pcid=car.pcid)
    party = "emsp" if operation == "by emaid" else "oem"
    answer = ok(send(pool, party, "GET", path, params={"xsdMsgDefNamespace": str(car.namespace)}))
    expected = {**contract_data(car, contract, values), "cpsV2GRootDistinguishedName": values["dn"]}
    assert answer == {"contractDataCollection": [expected]}


@every_edition
@pytest.mark.parametrize("operation", ["by emaid", "by pcid"])
def test_opcp_contract_data_has_every_published_member(pool: Pool, edition: str, operation: str) -> None:
    car, contract, values = stored(pool, edition)
    path = PATHS["opcp", operation].format(emaid=contract.emaid, pcid=car.pcid)
    party = "emsp" if operation == "by emaid" else "oem"
    answer = ok(send(pool, party, "GET", path, params={"xsdMsgDefNamespace": str(car.namespace)}))
    names = {"cpsRootCertificateDN": values["dn"], "cpsRootDistinguishedName": values["dn"], "priority": 1}
    assert answer == {"XMLContracts": [{**contract_data(car, contract, values), **names}]}


@every_edition
@pytest.mark.parametrize("operation", ["deliver", "fetch"])
def test_opnc_signed_contract_has_every_published_member(pool: Pool, edition: str, operation: str) -> None:
    car, contract, values = stored(pool, edition)
    path = PATHS["opnc", operation].format(emaid=contract.emaid, pcid=car.pcid)
    if operation == "deliver":
        body = post_body(car.request(SESSION, AT), str(car.namespace))
        answer = ok(send(pool, "cpo", "POST", path, json=body))
    else:
        query = {"xsdMsgDefNamespace": str(car.namespace), "sessionID": SESSION.hex()}
        answer = ok(send(pool, "oem", "GET", path, params=query))
    (item,) = answer["signedContractDataCollection"]
    assert car.install(response_bytes(item), SESSION, AT)[0] == contract.emaid
    assert item == {
        "certificateInstallationRes": item["certificateInstallationRes"],
        "emaid": contract.emaid,
        "pcid": car.pcid,
        "xsdMsgDefNamespace": str(car.namespace),
        "cpsV2GRootCertificateFingerprint": values["root"],
        "cpsRootDistinguishedName": values["dn"],
        "metaData": "about it",
    }


@every_edition
def test_opcp_delivery_has_every_published_member(pool: Pool, edition: str) -> None:
    car, contract, values = stored(pool, edition)
    body = post_body(car.request(SESSION, AT), str(car.namespace))
    answer = ok(send(pool, "cpo", "POST", PATHS["opcp", "deliver"], json=body))
    item = answer["CCPResponse"]["emaidContent"][0]["messageDef"]
    assert car.install(response_bytes(item), SESSION, AT)[0] == contract.emaid
    message = {
        "certificateInstallationRes": item["certificateInstallationRes"],
        "emaid": contract.emaid,
        "metaData": "about it",
        "cpsV2GRootCertificateFingerprint": values["root"],
    }
    namespace = {"xsdMsgDefNamespace": str(car.namespace)}
    assert answer == {"CCPResponse": {"emaidContent": [{"messageDef": message}]}, **namespace}


@every_edition
def test_opcp_provided_contract_has_every_published_member(pool: Pool, edition: str) -> None:
    car, contract, values = stored(pool, edition)
    path = PATHS["opcp", "fetch"].format(emaid=contract.emaid, pcid=car.pcid)
    answer = ok(send(pool, "oem", "GET", path, params={"xsdMsgDefNamespace": str(car.namespace)}))
    assert answer == {
        "certificateInstallationRes": contract.body["certificateInstallationRes"],
        "xsdMsgDefNamespace": str(car.namespace),
        "cpsV2GRootCertificateFingerprint": values["root"],
    }


# --- Parameters ------------------------------------------------------------------------------------------------------


@every_dialect
@pytest.mark.parametrize("operation", ["by emaid", "by pcid", "fetch"])
def test_namespace_parameter_selects_the_edition(pool: Pool, dialect: str, operation: str) -> None:
    old = pool.car("iso2")
    new = Car.generate(pool.pki("iso20"), old.pcid, AT)
    contract = pool.publish(old)
    pool.publish(new, contract.emaid)
    path = PATHS[dialect, operation].format(emaid=contract.emaid, pcid=old.pcid)
    party = "emsp" if operation == "by emaid" else "oem"
    for query, namespace in (
        ({}, str(old.namespace)),  # The published default.
        ({"xsdMsgDefNamespace": str(old.namespace)}, str(old.namespace)),
        ({"xsdMsgDefNamespace": str(new.namespace)}, str(new.namespace)),
    ):
        answer = ok(send(pool, party, "GET", path, params=query))
        items = [answer] if "xsdMsgDefNamespace" in answer else next(iter(answer.values()))
        assert [item["xsdMsgDefNamespace"] for item in items] == [namespace]
    (sentence,) = sentences(send(pool, party, "GET", path, params={"xsdMsgDefNamespace": "urn:iso:15118:3"}), 400)
    assert sentence.startswith("xsdMsgDefNamespace : ")


@every_dialect
def test_session_parameter_is_put_into_the_message(pool: Pool, dialect: str) -> None:
    car = pool.car()
    contract = pool.publish(car)
    path = PATHS[dialect, "fetch"].format(emaid=contract.emaid, pcid=car.pcid)

    def session(query: dict[str, str]) -> bytes:
        answer = ok(send(pool, "oem", "GET", path, params=query))
        item = answer.get("signedContractDataCollection", [answer])[0]
        header = read(item, str(car.namespace)).parsed.message.Header
        found: bytes = header.SessionID
        return found

    published = session({})
    assert session({"sessionID": ""}) == published
    assert session({"sessionID": "00"}) == b"\0"
    assert session({"sessionID": SESSION.hex()}) == SESSION
    (sentence,) = sentences(send(pool, "oem", "GET", path, params={"sessionID": "0" * 18}), 400)
    assert sentence.startswith("sessionID : ")


@every_dialect
@pytest.mark.parametrize("operation", ["by emaid", "withdraw", "fetch", "set default"])
def test_emaid_in_a_path_names_the_contract(pool: Pool, dialect: str, operation: str) -> None:
    method = {"withdraw": "DELETE", "set default": "POST"}.get(operation, "GET")
    party = "emsp" if operation in ("by emaid", "withdraw") else "oem"
    car = pool.car()
    one, other = pool.publish(car), pool.publish(car)

    def path(emaid: str) -> str:
        return PATHS[dialect, operation].format(emaid=emaid, pcid=car.pcid)

    assert send(pool, party, method, path(other.emaid)).status_code == 200
    if operation == "set default":
        defaults = {item["emaid"]: item["defaultContract"] for item in pool.listed(car)}
        assert defaults == {one.emaid: False, other.emaid: True}
    assert pool.stored(one.emaid) == 1
    assert pool.stored(other.emaid) == (operation != "withdraw")
    unknown = 400 if operation == "set default" else 404
    assert sentences(send(pool, party, method, path(new_emaid())), unknown)
    (sentence,) = sentences(send(pool, party, method, path("DEEXAC1234567")), 400)
    assert sentence.startswith("emaid : must match")


@every_dialect
@pytest.mark.parametrize("operation", ["by pcid", "fetch", "set default"])
def test_pcid_in_a_path_names_the_vehicle(pool: Pool, dialect: str, operation: str) -> None:
    method = "POST" if operation == "set default" else "GET"
    contract = pool.contract(car := pool.car())
    assert pool.put(contract).status_code == 201

    def path(pcid: str) -> str:
        return PATHS[dialect, operation].format(emaid=contract.emaid, pcid=pcid)

    assert send(pool, "oem", method, path(car.pcid)).status_code == 200
    unknown = 400 if operation == "set default" else 404
    assert sentences(send(pool, "oem", method, path(new_pcid())), unknown)
    (sentence,) = sentences(send(pool, "oem", method, path("WEX0")), 400)
    assert sentence.startswith("pcid : must match")


@pytest.fixture(scope="module")
def revoking(pkis: dict[str, PKI]) -> Iterator[tuple[Pool, Scripted]]:
    """A pool whose operator runs the CA of contracts."""
    cas = (pkis["iso2"].emsp_sub2.certificate.fingerprint,)
    with (
        scripted() as service,
        start({"iso2": pkis["iso2"]}, pki_url=service.url + "/opnc/v1/pki", operator_cas=cas) as running,
    ):
        service.on("/opnc/v1/pki/pki/revokeCertificate", Reply(200))
        yield running, service


@every_dialect
def test_skip_revocation_as_a_header_decides_about_revocation(revoking: tuple[Pool, Scripted], dialect: str) -> None:
    pool, service = revoking
    for value, revoked in ((None, 1), ("false", 1), ("true", 0)):
        contract = pool.publish(pool.car())
        path = PATHS[dialect, "withdraw"].format(emaid=contract.emaid)
        service.received.clear()
        headers = {} if value is None else {"X-Skip-Revocation": value}
        assert send(pool, "emsp", "DELETE", path, headers=headers).status_code == 200
        assert (len(service.received), pool.stored(contract.emaid)) == (revoked, 0)
    contract = pool.publish(pool.car())
    path = PATHS[dialect, "withdraw"].format(emaid=contract.emaid)
    (sentence,) = sentences(send(pool, "emsp", "DELETE", path, headers={"X-Skip-Revocation": "maybe"}), 400)
    assert sentence.startswith("X-Skip-Revocation : ")
    assert pool.stored(contract.emaid) == 1


@every_dialect
def test_always_exi_header_decides_between_message_and_error(pool: Pool, dialect: str) -> None:
    car = pool.car()
    body = post_body(car.request(SESSION, AT), str(car.namespace))
    path = PATHS[dialect, "deliver"]
    for value in (None, "true", "True"):
        headers = {} if value is None else {"alwaysReturnEXI": value}
        answer = ok(send(pool, "cpo", "POST", path, json=body, headers=headers))
        (content,) = answer.get("signedContractDataCollection") or answer["CCPResponse"]["emaidContent"]
        item = content.get("messageDef", content)
        assert read(item, str(car.namespace)).response_code == "FAILED_NoCertificateAvailable"
        assert item["emaid"] == "ZZZZZ000000000"
    assert sentences(send(pool, "cpo", "POST", path, json=body, headers={"alwaysReturnEXI": "false"}), 404)
    (sentence,) = sentences(send(pool, "cpo", "POST", path, json=body, headers={"alwaysReturnEXI": "1"}), 400)
    assert sentence.startswith("alwaysReturnEXI : ")


# --- Members of requests ---------------------------------------------------------------------------------------------


@every_dialect
def test_request_of_a_vehicle_has_its_published_members(pool: Pool, dialect: str) -> None:
    car = pool.car()
    pool.publish(car)
    body = post_body(car.request(SESSION, AT), str(car.namespace))
    for more in ({}, {"metadata": "open"}, {"metadata": None}):
        assert send(pool, "cpo", "POST", PATHS[dialect, "deliver"], json={**body, **more}).status_code == 200
    for name, wrong in (("certificateInstallationReq", 5), ("xsdMsgDefNamespace", 5), ("metadata", 5)):
        (sentence,) = sentences(send(pool, "cpo", "POST", PATHS[dialect, "deliver"], json={**body, name: wrong}), 400)
        assert sentence.startswith(f"{name} : ")
        if name != "metadata":
            less = {key: value for key, value in body.items() if key != name}
            (sentence,) = sentences(send(pool, "cpo", "POST", PATHS[dialect, "deliver"], json=less), 400)
            assert sentence == f"{name} : is missing"


@every_dialect
def test_publication_has_its_published_members(pool: Pool, dialect: str) -> None:
    """Each one is stored, and a wrong one is named. `signedContractDataXML` has tests of its own."""
    car = pool.car()
    root = pool.pki().v2g_root.certificate
    metadata = "metaData" if dialect == "opnc" else "metadata"
    given = {metadata: "about it", "cpsV2GRootCertificateFingerprint": root.fingerprint}
    if dialect == "opnc":
        given["cpsRootDistinguishedName"] = root.subject_dn
    contract = pool.contract(car, body=given)
    path = PATHS[dialect, "publish"]
    for name in contract.body:
        (sentence,) = sentences(send(pool, "cps", "PUT", path, json={**contract.body, name: 5}), 400)
        assert sentence.startswith(f"{name} : "), sentence
    assert pool.stored(contract.emaid) == 0
    assert send(pool, "cps", "PUT", path, json=contract.body).status_code == 201
    assert pool.sql(
        "select pcid, namespace, root_fingerprint, metadata, response from contract where emaid = ?",
        str(contract.emaid),
    ) == [(car.pcid, str(car.namespace), root.fingerprint, "about it", contract.message)]
