"""Hostile XML in publications: one sentence for the sender, and no delay for vehicles."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.exi.hostile_xml import READABLE, hostile_documents
from tests.server.http.api.answers import sentences
from tests.server.http.opcp.requests import call
from tests.world import Pool, b64

SIZE = 190_000  # Base64 of it is a body that the pool takes.


@pytest.mark.parametrize("dialect", ["opnc", "opcp"])
def test_xml_that_is_hostile_is_400_with_a_sentence(pool: Pool, dialect: str) -> None:
    contract = pool.contract(pool.car())
    for name, document in hostile_documents(SIZE):
        body = {**contract.body, "certificateInstallationRes": b64(document)}
        if dialect == "opnc":
            answer = pool.cps.put("/signedcontractdata", json=body)
        else:
            body["signedContractDataXML"] = body.pop("certificateInstallationRes")
            answer = call(pool, "cps", "PUT", "/ccp/signedContractData", json=body)
        first, second = sentences(answer, 400)
        assert first == "EXI format is invalid!", name
        assert len(second) < 500
        assert "root:" not in second
        # A message that can be read is a request, which is not published.
        assert ("a CertificateInstallationReq where" in second.replace("A Cert", "a Cert")) == (name in READABLE), name
    assert pool.stored(contract.emaid) == 0


@pytest.mark.timing
def test_xml_that_is_hostile_does_not_delay_a_vehicle(pool: Pool) -> None:
    car = pool.car()
    pool.publish(car)
    documents = [document for _, document in hostile_documents(SIZE)]
    bodies = [{**pool.contract(car).body, "certificateInstallationRes": b64(document)} for document in documents]
    longest = 0.0
    with ThreadPoolExecutor(4) as threads:
        sending = [threads.submit(pool.cps.put, "/signedcontractdata", json=body) for body in bodies * 2]
        while not all(each.done() for each in sending):
            began = time.monotonic()
            pool.ask(car)
            longest = max(longest, time.monotonic() - began)
    assert {each.result().status_code for each in sending} == {400}
    assert longest < 1.0


def test_sentence_quotes_the_name_of_an_element_as_it_was_sent(pool: Pool) -> None:
    body = {**pool.contract(pool.car()).body, "certificateInstallationRes": b64(b"<signedData/>")}
    _, second = sentences(pool.cps.put("/signedcontractdata", json=body), 400)
    assert second.startswith("The element signedData is none of the messages V2G_Message, ")
