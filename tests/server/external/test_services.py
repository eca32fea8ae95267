"""The whole pool with scripted external services."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ccp.server.external.provisioning_pool import key_fingerprint
from ccp.server.http.routes.pcp_webhook import PATH
from ccp.server.storage.queries import anchors
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.scripted_server import CLOSE, HANG, JSON, Received, Reply, Scripted, error, granted, json_reply, scripted
from tests.server.external.examples import provisioning_event, serve_chain
from tests.server.http.api.answers import sentences
from tests.world import AT, Pool, again, b64, new_pcid, start

SECRET = "webhook"


@pytest.fixture(scope="module")
def pki_service() -> Iterator[Scripted]:
    with scripted() as fake:
        yield fake


@pytest.fixture(scope="module")
def pcp() -> Iterator[Scripted]:
    with scripted() as fake:
        yield fake


@pytest.fixture(scope="module")
def around(pkis: dict[str, PKI], pki_service: Scripted, pcp: Scripted) -> Iterator[Pool]:
    options = {
        "pki_url": pki_service.url + "/opnc/v1/pki",
        "pcp_url": pcp.url,
        "pcp_webhook_secret": SECRET,
        "require_known_vehicle": False,
        "operator_cas": (pkis["iso2"].emsp_sub2.certificate.fingerprint,),
    }
    with start(pkis, **options) as pool:
        yield pool


REVOKE = "/opnc/v1/pki/pki/revokeCertificate"


def test_withdraw_revokes_first_with_the_given_reason(around: Pool, pki_service: Scripted) -> None:
    pki_service.on(REVOKE, Reply(200))
    contract = around.publish(around.car())
    pki_service.received.clear()
    answer = around.emsp.delete(f"/signedcontractdata/{contract.emaid}", headers={"X-Revocation-Reason": "superseded"})
    assert answer.status_code == 200
    (call,) = pki_service.received
    assert json.loads(call.body) == {"certificate": b64(contract.certificate), "revocationReason": "superseded"}
    assert around.stored(contract.emaid) == 0
    contract = around.publish(around.car())
    assert around.emsp.delete(f"/signedcontractdata/{contract.emaid}").status_code == 200
    assert json.loads(pki_service.received[-1].body)["revocationReason"] == "cessationOfOperation"


def test_withdraw_is_502_if_the_pki_service_hangs(
    pkis: dict[str, PKI], pki_service: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccp.server.external.pki_service.REVOKE_TIMEOUT", 0.3)
    pki_service.on(REVOKE, HANG)
    cas = (pkis["iso2"].emsp_sub2.certificate.fingerprint,)
    with start(pkis, pki_url=pki_service.url + "/opnc/v1/pki", operator_cas=cas) as pool:
        contract = pool.publish(pool.car())
        began = time.monotonic()
        (sentence,) = sentences(pool.emsp.delete(f"/signedcontractdata/{contract.emaid}"), 502)
        assert "does not answer now; nothing was changed" in sentence
        assert time.monotonic() - began < 2
        assert pool.stored(contract.emaid) == 1


def test_withdraw_revokes_with_a_renewed_token_or_not_at_all(pkis: dict[str, PKI]) -> None:
    cas = (pkis["iso2"].emsp_sub2.certificate.fingerprint,)

    def revoke(call: Received) -> Reply:
        return Reply(200) if call.headers["authorization"] == "Bearer second" else Reply(401)

    with scripted() as service:
        service.on("/token", granted("first"), granted("second"))
        service.on(REVOKE, revoke)
        options = {"pki_token_url": service.url + "/token", "pki_client_id": "pool", "pki_client_secret": SECRET}
        with start(pkis, pki_url=service.url + "/opnc/v1/pki", operator_cas=cas, **options) as pool:
            contract = pool.publish(pool.car())
            assert pool.emsp.delete(f"/signedcontractdata/{contract.emaid}").status_code == 200
            assert [call.path for call in service.received] == ["/token", REVOKE, "/token", REVOKE]
            revoked = [json.loads(call.body)["certificate"] for call in service.asked(REVOKE)]
            assert revoked == [b64(contract.certificate)] * 2
        service.on("/token", Reply(500))
        with start(pkis, pki_url=service.url + "/opnc/v1/pki", operator_cas=cas, **options) as pool:
            contract = pool.publish(pool.car())
            (sentence,) = sentences(pool.emsp.delete(f"/signedcontractdata/{contract.emaid}"), 502)
            assert sentence == "There is no access token for the PKI service now; nothing was changed."
            assert pool.stored(contract.emaid) == 1
            assert service.count(REVOKE) == 2


@pytest.mark.parametrize("reply", [error(400, "no"), Reply(500), CLOSE, Reply(200, b"{", JSON)])
def test_withdraw_is_502_if_the_revocation_fails(around: Pool, pki_service: Scripted, reply: Reply) -> None:
    pki_service.on(REVOKE, reply)
    contract = around.publish(around.car())
    sentences(around.emsp.delete(f"/signedcontractdata/{contract.emaid}"), 502)
    assert around.stored(contract.emaid) == 1
    skipped = around.emsp.delete(f"/signedcontractdata/{contract.emaid}", headers={"X-Skip-Revocation": "true"})
    assert skipped.status_code == 200


def test_withdraw_does_not_revoke_certificates_of_other_cas(around: Pool, pki_service: Scripted) -> None:
    pki_service.received.clear()
    contract = around.publish(around.car(), signer="other_iso2")
    assert around.emsp.delete(f"/signedcontractdata/{contract.emaid}").status_code == 200
    assert pki_service.received == []
    contract = around.publish(around.car())
    answer = around.emsp.delete(f"/signedcontractdata/{contract.emaid}", headers={"X-Revocation-Reason": "whatever"})
    assert "X-Revocation-Reason" in sentences(answer, 400)[0]


def test_delivery_uses_sub_cas_from_the_provisioning_pool(around: Pool, pcp: Scripted, pkis: dict[str, PKI]) -> None:
    from ccp.testing.pki import SUB_CA2

    sub2 = pkis["iso2"].oem_sub1.issue("OEM Sub2 CA NEW", SUB_CA2, now=AT)
    car = Car.generate(replace(pkis["iso2"], oem_sub2=sub2), new_pcid(), AT)
    serve_chain(pcp, car)
    contract = around.publish(car)
    assert around.sql("select provisioning_key from contract where emaid = ?", contract.emaid) == [
        (key_fingerprint(car.provisioning.certificate),)
    ]
    assert around.ask(car)[0]["emaid"] == contract.emaid


def test_delivery_refuses_vehicles_and_contracts_with_an_old_key(
    around: Pool, pcp: Scripted, pkis: dict[str, PKI]
) -> None:
    car = around.car()
    serve_chain(pcp, car)
    contract = around.publish(car)
    around.ask(car)
    assert "undeliverable" not in around.emsp.get(f"/contractData/emaid/{contract.emaid}").text
    renewed = Car.from_credential(pkis["iso2"], again(pkis["iso2"], car), car.pcid)
    serve_chain(pcp, renewed)
    item = around.post(renewed).json()["signedContractDataCollection"][0]
    assert "stale" in item["metaData"]  # The stored contract was encrypted for the old key.
    data = around.emsp.get(f"/contractData/emaid/{contract.emaid}").json()["contractDataCollection"]
    assert ["another provisioning key" in entry["undeliverable"] for entry in data] == [True]
    item = around.post(car).json()["signedContractDataCollection"][0]
    assert "not the vehicle's current one" in item["metaData"]


def test_delivery_continues_if_the_provisioning_pool_hangs(
    pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccp.server.external.provisioning_pool.PUBLICATION_TIMEOUT", 0.2)
    with scripted() as silent, start(pkis, pcp_url=silent.url, require_known_vehicle=False) as pool:
        silent.on("*", HANG)
        car = pool.car()
        contract = pool.publish(car)
        began = time.monotonic()
        assert pool.ask(car)[0]["emaid"] == contract.emaid
        assert 0.9 < time.monotonic() - began < 2
        assert len(silent.received) == 2


def test_provisioning_pool_event_removes_contracts(around: Pool, pcp: Scripted) -> None:
    car = around.car()
    serve_chain(pcp, car)
    around.publish(car)
    body = provisioning_event("emsp.prov.cert.deleted", car.pcid, datetime.now(UTC))
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    answer = around.http.post(PATH, content=body, headers={"X-Operator-Signature": "sha256=" + signature})
    assert answer.status_code == 200, answer.text
    assert around.listed(car) == []


def test_openapi_description_names_the_pcp_event_path(around: Pool) -> None:
    described = around.http.get("/openapi.json").json()
    operation = described["paths"][PATH]["post"]
    assert operation["operationId"] == "TakeProvisioningEvent"
    assert {each["name"] for each in operation["parameters"]} == {
        "X-Operator-Signature",
        "X-Operator-Signatures",
        "payload-signature",
        "X-Hubject-Signature",
    }
    assert {"200", "400", "403", "404", "503"} <= set(operation["responses"])


def test_server_synchronises_roots_on_schedule(pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccp.server.trust.root_sync._MAX_FIRST_DELAY", 0.01)
    with scripted() as rcp:
        entries = [
            {"caCertificate": b64(certificate.der), "rootTypeList": [role.value.upper()]}
            for role, certificate in pkis["stranger"].trust_list()
        ]
        rcp.on("/rootcertificates", json_reply({"rootCertificateCollection": entries}))
        with start(pkis, rcp_url=rcp.url) as pool:
            contract = pool.contract(pool.car(), signer="stranger")
            deadline = time.monotonic() + 30
            while (answer := pool.cps.put("/signedcontractdata", json=contract.body)).status_code != 201:
                assert time.monotonic() < deadline, answer.text
                time.sleep(0.1)
            assert len(pool.change(anchors.list_all())) == len(pool.world.pkis) * 5 - 5 + 3
