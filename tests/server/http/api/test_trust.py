"""Revocation, dry run and warnings over HTTP, with certificates that name responders on loopback."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ccp.server.storage.queries import revocation as evidence
from ccp.testing.partners import Car, issue_contract, sign_contract
from ccp.testing.pki import PKI, Credential
from ccp.x509.certificates import Certificate
from ccp.x509.revocation_evidence import Evidence, RevocationStatus
from tests.scripted_server import Reply, unused_port
from tests.server.http.api.answers import sentences
from tests.server.http.api.responders import LOOPBACK, Responder, path_of, pki_with_responder
from tests.server.http.api.revocable import EDITIONS, cas, serial
from tests.server.trust.revocation.made import crl
from tests.server.trust.revocation.servers import openssl_responder
from tests.world import AT, Contract, Pool, new_emaid, put_body, read, start

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def revoke(pool: Pool, certificate: Certificate, issuer: Credential) -> None:
    """Store evidence as if an OCSP responder reported the certificate as revoked."""
    revocation = Evidence(
        issuer.certificate.issuer_key_id,
        certificate.serial_number,
        RevocationStatus.REVOKED,
        AT,
        AT + HOUR,
        AT - DAY,
        "OCSP test",
    )
    assert pool.change(evidence.store_evidence(revocation)) is True


def negative(pool: Pool, car: Car) -> tuple[str, str]:
    """Return the response code of a negative response, and the fault message for the station."""
    answer = pool.post(car)
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["signedContractDataCollection"]
    return read(item).response_code, item["metaData"]


# --- Publishing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", EDITIONS)
def test_contract_with_valid_certificates_is_stored_after_ocsp_for_each_ca(
    around: Pool, responder: Responder, edition: str
) -> None:
    contract = around.contract(around.car(edition))
    answer = around.put(contract)
    assert answer.status_code == 201, answer.text
    for ca in ("eMSP Sub2 CA SIM", "eMSP Sub1 CA SIM", "eMSP Root CA SIM", "CPS Sub2 CA SIM", "V2G Root CA SIM"):
        assert responder.server.count(f"/{edition}{path_of(ca)}") >= 1


@pytest.mark.parametrize("edition", EDITIONS)
def test_contract_certificate_that_is_revoked_is_refused_by_name(
    around: Pool, responder: Responder, edition: str
) -> None:
    contract = around.contract(around.car(edition))
    responder.revoked.add(serial(contract))
    (message,) = sentences(around.put(contract), 400)
    assert contract.emaid in message
    assert f"was revoked at {AT - DAY:%Y-%m-%dT%H:%M:%SZ}" in message
    assert around.stored(contract.emaid) == 0
    asked = len(responder.server.received)
    assert sentences(around.put(contract), 400) == [message]  # final: the responder is not queried again
    assert len(responder.server.received) == asked


def test_sub_ca_that_is_revoked_is_refused_by_name(responder: Responder) -> None:
    pki = pki_with_responder(responder.server.url + "/sub")
    responder.register(*cas(pki), prefix="/sub")
    responder.revoked |= {pki.emsp_sub2.certificate.serial_number, pki.cps_sub1.certificate.serial_number}
    with start({"iso2": pki}, egress_allow_networks=LOOPBACK) as pool:
        contract = pool.contract(pool.car())
        message = " ".join(sentences(pool.put(contract), 400))
        assert "eMSP Sub2 CA SIM" in message
        assert "CPS Sub1 CA SIM" in message
        assert pool.stored(contract.emaid) == 0


def test_publication_is_503_while_the_responder_is_down_and_stored_afterwards(tmp_path: Path) -> None:
    port = unused_port()
    pki = pki_with_responder(f"http://127.0.0.1:{port}", "eMSP Sub2 CA SIM")
    with start({"iso2": pki}, egress_allow_networks=LOOPBACK) as pool:
        contract = pool.contract(pool.car())
        answer = pool.put(contract)
        (message,) = sentences(answer, 503)
        assert "cannot be established now" in message
        assert int(answer.headers["Retry-After"]) > 0
        assert pool.stored(contract.emaid) == 0
        assert pool.sql("select * from vehicle") == pool.sql("select * from outbox") == []
        with openssl_responder(tmp_path, pki.emsp_sub2, {serial(contract): None}, port=port):
            answer = pool.put(contract)
        assert answer.status_code == 201, answer.text
        assert pool.stored(contract.emaid) == 1


@pytest.mark.parametrize("signer", ["iso20", "ed448"])
def test_key_that_is_not_for_this_edition_is_refused(around: Pool, signer: str) -> None:
    """A contract under keys of ISO 15118-20 in a message of ISO 15118-2, which its provisioning service signed well."""
    car, emaid, pki = around.car(), new_emaid(), around.pki(signer)
    bundle = issue_contract(around.pki(), emaid, car.pcid, car.provisioning.certificate, AT)
    message = sign_contract(around.pki(), replace(bundle, contract=pki.contract(emaid, now=AT)), AT)
    contract = Contract(emaid, message, put_body(message, emaid, car.pcid, str(car.namespace)), b"")
    (sentence,) = sentences(around.put(contract), 400)
    assert sentence == f'The key of certificate "{emaid}" is not of a kind that ISO 15118-2 allows.'
    assert around.stored(emaid) == 0


def test_certificates_that_name_nothing_are_stored_unless_evidence_is_required(
    around: Pool, pkis: dict[str, PKI]
) -> None:
    around.publish(around.car(), signer="plain")
    with start(pkis, revocation="require") as pool:
        contract = pool.contract(pool.car())
        messages = sentences(pool.put(contract), 400)
        assert all("names no OCSP or CRL address, which this pool requires." in one for one in messages)
        assert any(contract.emaid in one for one in messages)
        assert pool.stored(contract.emaid) == 0


def test_revocation_off_queries_no_responder(named: dict[str, PKI], responder: Responder) -> None:
    asked = len(responder.server.received)
    with start(named, egress_allow_networks=LOOPBACK, revocation="off") as pool:
        car = pool.car()
        contract = pool.contract(car)
        responder.revoked.add(serial(contract))
        assert pool.put(contract).status_code == 201
        assert pool.ask(car)[0]["emaid"] == contract.emaid
    assert len(responder.server.received) == asked


EVIDENCE_RAN_OUT = "temporary: The revocation status of the vehicle's contract is not known now; try again."


NOTHING = {"iso2": "FAILED_NoCertificateAvailable", "iso20": "WARNING_NoCertificateAvailable"}


# --- Delivering ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", EDITIONS)
def test_contract_that_is_revoked_after_it_was_stored_is_not_delivered(around: Pool, edition: str) -> None:
    car = around.car(edition)
    contract = around.publish(car)
    assert around.ask(car)[0]["emaid"] == contract.emaid
    revoke(around, Certificate.load(contract.certificate), around.pki(edition).emsp_sub2)
    assert negative(around, car)[0] == NOTHING[edition]
    assert around.post(car, headers={"alwaysReturnEXI": "false"}).status_code == 404


def test_contract_that_is_revoked_leaves_the_others_of_a_vehicle_deliverable(around: Pool) -> None:
    car = around.car("iso20")
    revoked, other = around.publish(car), around.publish(car)
    revoke(around, Certificate.load(revoked.certificate), around.pki("iso20").emsp_sub2)
    assert [item["emaid"] for item in around.ask(car)] == [other.emaid]


def test_default_that_is_revoked_counts_as_none(around: Pool) -> None:
    """A sole deliverable contract is delivered; of several none, since the driver has not chosen."""
    car = around.car()
    default, other = around.publish(car), around.publish(car)
    revoke(around, Certificate.load(default.certificate), around.pki().emsp_sub2)
    assert [item["emaid"] for item in around.ask(car)] == [other.emaid]
    car = around.car()
    default = around.publish(car)
    around.publish(car)
    around.publish(car)
    revoke(around, Certificate.load(default.certificate), around.pki().emsp_sub2)
    code, message = negative(around, car)
    assert code == NOTHING["iso2"]
    assert message == "The default contract of the vehicle cannot be delivered now."
    # Its provider's next contract takes the default back, as after the revoked one is purged.
    successor = around.publish(car)
    assert [item["emaid"] for item in around.ask(car)] == [successor.emaid]


def test_crl_that_the_sweep_loads_stops_a_delivery(
    responder: Responder, pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccp.server.trust.revocation._REFRESH_INTERVAL", 0.1)
    pki = pkis["iso2"]
    url = responder.server.on("/crl", crl(pki.emsp_sub2))
    with start({"iso2": pki}, crl_urls={"eMSP Sub2 CA SIM": url}) as pool:
        car = pool.car()
        contract = pool.publish(car)
        assert pool.ask(car)
        responder.server.on("/crl", crl(pki.emsp_sub2, Certificate.load(contract.certificate), number=2))
        pool.sql("update crl set refresh_at = 0")
        deadline = time.monotonic() + 30
        while "metaData" not in pool.post(car).json()["signedContractDataCollection"][0]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert negative(pool, car)[0] == NOTHING["iso2"]


@pytest.mark.parametrize("edition", EDITIONS)
def test_evidence_that_has_run_out_stops_a_delivery(around: Pool, edition: str) -> None:
    car = around.car(edition)
    contract = around.publish(car)
    run_out(around, contract)
    assert negative(around, car) == ("FAILED", EVIDENCE_RAN_OUT)
    refused = around.post(car, headers={"alwaysReturnEXI": "false"})
    assert [f"temporary: {message}" for message in sentences(refused, 503)] == [EVIDENCE_RAN_OUT]
    assert "Retry-After" in refused.headers


def test_evidence_that_has_run_out_is_temporary_only_where_it_decides(around: Pool) -> None:
    car = around.car()
    first, second = around.publish(car), around.publish(car)
    run_out(around, second)
    assert [item["emaid"] for item in around.ask(car)] == [first.emaid], "the other one is not the default"
    revoke(around, Certificate.load(first.certificate), around.pki().emsp_sub2)
    assert negative(around, car) == ("FAILED", EVIDENCE_RAN_OUT), "then the second is the only one left"
    revoke(around, Certificate.load(second.certificate), around.pki().emsp_sub2)
    assert negative(around, car)[0] == NOTHING["iso2"]


def run_out(pool: Pool, contract: Contract) -> None:
    """Let the evidence for a contract certificate be past its nextUpdate."""
    late = int((datetime.now(UTC) - timedelta(minutes=5)).timestamp() * 1_000_000)
    where = "where serial = ?"
    pool.sql(f"update evidence set next_update = ? {where}", late, f"{serial(contract):x}")
    assert pool.sql(f"select next_update from evidence {where}", f"{serial(contract):x}") == [(late,)]


def test_delivery_accepts_expired_evidence_within_the_revocation_grace(
    named: dict[str, PKI],
) -> None:
    with start(named, egress_allow_networks=LOOPBACK, revocation_grace=3600) as pool:
        car = pool.car()
        contract = pool.publish(car)
        run_out(pool, contract)
        assert pool.ask(car)[0]["emaid"] == contract.emaid
        pool.sql("update evidence set next_update = next_update - 7200000000 where serial = ?", f"{serial(contract):x}")
        assert negative(pool, car) == ("FAILED", EVIDENCE_RAN_OUT)


@pytest.mark.parametrize("edition", EDITIONS)
def test_vehicle_whose_provisioning_certificate_is_revoked_is_told_so(around: Pool, edition: str) -> None:
    car = around.car(edition)
    around.publish(car)
    around.ask(car)
    revoke(around, car.provisioning.certificate, around.pki(edition).oem_sub2)
    code, message = negative(around, car)
    assert code == {"iso2": "FAILED_CertificateRevoked", "iso20": "WARNING_CertificateRevoked"}[edition]
    assert "revoked" in message


def test_vehicle_evidence_is_fetched_after_the_response_and_counts_next_time(
    around: Pool, responder: Responder
) -> None:
    car = around.car()
    around.publish(car)
    responder.revoked.add(car.provisioning.certificate.serial_number)
    around.ask(car)
    deadline = time.monotonic() + 30
    while "metaData" not in around.post(car).json()["signedContractDataCollection"][0]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert negative(around, car)[0] == "FAILED_CertificateRevoked"


def test_delivery_does_not_wait_for_a_responder_that_hangs(responder: Responder) -> None:
    pki = pki_with_responder(responder.server.url + "/hanging", "OEM Sub2 CA SIM")
    path = "/hanging" + path_of("OEM Sub2 CA SIM")
    responder.server.on(path, Reply(delay=30))
    with start({"iso2": pki}, egress_allow_networks=LOOPBACK) as pool:
        car = pool.car()
        pool.publish(car)
        for _ in range(10):
            before = time.monotonic()
            pool.ask(car)
            assert time.monotonic() - before < 0.5
        deadline = time.monotonic() + 20
        while not responder.server.count(path) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert responder.server.count(path) == 1  # all of them share one request
