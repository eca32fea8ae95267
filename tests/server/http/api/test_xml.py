"""Publications whose message is XML: what is stored and delivered is the EXI that was signed."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from ccp import exi
from tests.server.http.api.answers import sentences
from tests.server.http.opcp.requests import call
from tests.world import AT, SESSION, Contract, Pool, b64, new_emaid, put_body, response_bytes

EDITIONS = ["iso2", "iso20", "ed448"]
DIALECTS = ["opnc", "opcp", "opcp published"]


def put(pool: Pool, dialect: str, message: bytes, contract: Contract, **query: str) -> httpx.Response:
    """Publish a message (EXI or XML) in the place of the contract's."""
    body: dict[str, Any] = {**contract.body, "certificateInstallationRes": b64(message)}
    if dialect == "opnc":
        return pool.cps.put("/signedcontractdata", json=body, params=query)
    if dialect == "opcp published":
        body["signedContractDataXML"] = body.pop("certificateInstallationRes")
    return call(pool, "cps", "PUT", "/ccp/signedContractData", json=body, params=query)


def as_xml(contract: Contract) -> bytes:
    return exi.to_xml(exi.decode(contract.message))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("edition", EDITIONS)
def test_publication_of_xml_stores_the_signed_exi(pool: Pool, edition: str, dialect: str) -> None:
    car = pool.car(edition)
    contract = pool.contract(car)
    assert put(pool, dialect, as_xml(contract), contract).status_code == 201
    stored = pool.sql("select response from contract where emaid = ?", str(contract.emaid))
    assert [bytes(row[0]) for row in stored] == [contract.message]
    (item,) = pool.ask(car)
    assert car.install(response_bytes(item), SESSION, AT)[0] == contract.emaid


@pytest.mark.parametrize("dialect", DIALECTS)
def test_publication_takes_xml_without_session_id_and_in_utf16(pool: Pool, dialect: str) -> None:
    for encoding in ("utf-8", "utf-16"):
        contract = pool.contract(pool.car())
        text = as_xml(contract).decode().partition("?>")[2]
        document = re.sub("<header:SessionID>.*</header:SessionID>", "", text).encode(encoding)
        assert put(pool, dialect, document, contract, dryRun="true").json()["passed"]
        assert pool.stored(contract.emaid) == 0
        assert put(pool, dialect, document, contract).status_code == 201
        ((stored,),) = pool.sql("select response from contract where emaid = ?", str(contract.emaid))
        assert bytes(stored) == exi.replace_header_fields(contract.message, session_id=b"\0")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_publication_takes_exi_under_either_name(pool: Pool, dialect: str) -> None:
    contract = pool.contract(pool.car())
    assert put(pool, dialect, contract.message, contract).status_code == 201


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("query", [{}, {"dryRun": "true"}])
def test_publication_of_wrong_xml_is_400_with_the_path(pool: Pool, dialect: str, query: dict[str, str]) -> None:
    contract = pool.contract(pool.car())
    good = as_xml(contract)
    code = b"<body:ResponseCode>OK</body:ResponseCode>"
    for document, sentence in (
        (
            good.replace(code, b""),
            "The element SAProvisioningCertificateChain where ResponseCode is expected at line 1, column ",
        ),
        (
            good.replace(code, b"<body:ResponseCode>Fine</body:ResponseCode>"),
            "Not one of the values of the enumeration",
        ),
        (good[:-10], "Not well-formed XML (unclosed token) at line 1"),
        (b"<!DOCTYPE x [<!ENTITY y SYSTEM 'file:///etc/passwd'>]>" + good.partition(b"?>")[2], "A document type"),
        (b"<x/>", "The element x is none of the messages V2G_Message"),
    ):
        answer = put(pool, dialect, document, contract, **query)
        assert answer.status_code == 400
        first, second = sentences(answer, 400)
        assert first == "EXI format is invalid!"
        assert second.startswith(sentence)
        assert "passwd" not in answer.text
    answer = put(pool, dialect, good.replace(code, b""), contract, **query)
    assert sentences(answer, 400)[1].endswith(" in V2G_Message/Body/CertificateInstallationRes.")
    assert pool.stored(contract.emaid) == 0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_publication_of_xml_makes_every_check_of_exi(pool: Pool, dialect: str) -> None:
    contract = pool.contract(pool.car())
    good = as_xml(contract)
    emaid = str(contract.emaid).encode()
    other = put(pool, dialect, good.replace(emaid, str(new_emaid()).encode()), contract)
    assert other.status_code == 400
    untrusted = pool.contract(pool.car(), signer="stranger")
    assert put(pool, dialect, as_xml(untrusted), untrusted).status_code == 400
    request = exi.to_xml(exi.decode(pool.car().request(SESSION, AT)))
    assert (
        "CertificateInstallationReq where a CertificateInstallationRes"
        in sentences(put(pool, dialect, request, contract), 400)[1]
    )
    new = pool.contract(pool.car("iso20"))
    wrong = {**put_body(as_xml(new), new.emaid, new.body["pcid"], contract.body["xsdMsgDefNamespace"])}
    assert "not of urn:iso:15118:2:2013:MsgDef" in sentences(pool.cps.put("/signedcontractdata", json=wrong), 400)[1]


def test_opcp_put_takes_exactly_one_of_the_names(pool: Pool) -> None:
    contract = pool.contract(pool.car())
    body = dict(contract.body)
    message = body.pop("certificateInstallationRes")

    def refused(**members: Any) -> list[str]:
        answer = call(pool, "cps", "PUT", "/ccp/signedContractData", json={**body, **members})
        assert answer.status_code == 400
        return sentences(answer, 400)

    both = "signedContractDataXML : must not be given together with certificateInstallationRes"
    assert refused(certificateInstallationRes=message, signedContractDataXML=message) == [both]
    missing = "certificateInstallationRes : is missing, and so is signedContractDataXML"
    assert refused() == refused(signedContractDataXML=None) == [missing]
    assert refused(signedContractDataXml=message) == [f"{missing} (given: signedContractDataXml)"]
    assert refused(emaid="?")[1:] == [missing]
    assert refused(certificateInstallationRes=None) == ["certificateInstallationRes : must not be null"]
    assert refused(signedContractDataXML="") == ["signedContractDataXML : must not be empty"]
    assert refused(signedContractDataXML=1) == ["signedContractDataXML : must be a string"]
    # OPNC has one name.
    answer = pool.cps.put("/signedcontractdata", json={**body, "signedContractDataXML": message})
    assert sentences(answer, 400) == ["certificateInstallationRes : is missing (given: signedContractDataXML)"]


def test_delivery_takes_exi_only(pool: Pool) -> None:
    car = pool.car()
    request = exi.to_xml(exi.decode(car.request(SESSION, AT)))
    body = {"certificateInstallationReq": b64(request), "xsdMsgDefNamespace": str(car.namespace)}
    answer = pool.cpo.post("/signedcontractdata", json=body)
    assert answer.status_code == 400
    assert "looks like Base64 of XML" in sentences(answer, 400)[1]
