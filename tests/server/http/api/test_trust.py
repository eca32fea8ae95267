"""Revocation, dry run and warnings over HTTP, with certificates that name responders on loopback."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from ccp import exi
from ccp.exi import iso2
from ccp.server.storage.queries import revocation as evidence
from ccp.testing.partners import Car, issue_contract, sign_contract
from ccp.testing.pki import CPS, PKI, Algorithm, Credential
from ccp.x509.certificates import Certificate
from ccp.x509.revocation_evidence import Evidence, RevocationStatus
from tests.scripted_server import Reply, scripted, unused_port
from tests.server.http.api.answers import sentences
from tests.server.http.api.responders import LOOPBACK, Responder, path_of, pki_with_responder
from tests.server.trust.revocation.made import crl
from tests.server.trust.revocation.servers import openssl_responder
from tests.world import AT, Contract, Pool, new_emaid, put_body, read, start

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
EDITIONS = ["iso2", "iso20"]


def cas(pki: PKI) -> tuple[Credential, ...]:
    return (
        pki.v2g_root, pki.cps_sub1, pki.cps_sub2, pki.emsp_root, pki.emsp_sub1, pki.emsp_sub2,
        pki.oem_root, pki.oem_sub1, pki.oem_sub2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def responder() -> Iterator[Responder]:
    with scripted() as server:
        yield Responder(server)


@pytest.fixture(scope="module")
def named(responder: Responder) -> dict[str, PKI]:
    """iso2 and iso20, whose certificates all name a responder that answers."""
    made = {}
    algorithms: dict[str, Algorithm] = {"iso2": "P-256", "iso20": "P-521"}
    for edition, algorithm in algorithms.items():
        pki = made[edition] = pki_with_responder(f"{responder.server.url}/{edition}", algorithm=algorithm)
        responder.register(*cas(pki), prefix=f"/{edition}")
    return made


@pytest.fixture(scope="module")
def around(named: dict[str, PKI], pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool whose certificates name responders, except for those of the PKIs `plain` and `ed448`."""
    worlds = {**named, "plain": pkis["iso2"], "ed448": pkis["ed448"], "stranger": pkis["stranger"]}
    with start(worlds, egress_allow_networks=LOOPBACK) as pool:
        yield pool


def serial(contract: Contract) -> int:
    return Certificate.load(contract.certificate).serial_number


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
def test_a_revoked_contract_certificate_is_refused_by_name(around: Pool, responder: Responder, edition: str) -> None:
    contract = around.contract(around.car(edition))
    responder.revoked.add(serial(contract))
    (message,) = sentences(around.put(contract), 400)
    assert contract.emaid in message
    assert f"was revoked at {AT - DAY:%Y-%m-%dT%H:%M:%SZ}" in message
    assert around.stored(contract.emaid) == 0
    asked = len(responder.server.received)
    assert sentences(around.put(contract), 400) == [message]  # final: the responder is not queried again
    assert len(responder.server.received) == asked


def test_a_revoked_sub_ca_is_refused_by_name(responder: Responder) -> None:
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
def test_a_key_that_is_not_for_this_edition_is_refused(around: Pool, signer: str) -> None:
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


def test_with_revocation_off_nobody_is_asked(named: dict[str, PKI], responder: Responder) -> None:
    asked = len(responder.server.received)
    with start(named, egress_allow_networks=LOOPBACK, revocation="off") as pool:
        car = pool.car()
        contract = pool.contract(car)
        responder.revoked.add(serial(contract))
        assert pool.put(contract).status_code == 201
        assert pool.ask(car)[0]["emaid"] == contract.emaid
    assert len(responder.server.received) == asked


# --- Delivering ------------------------------------------------------------------------------------------------------

EVIDENCE_RAN_OUT = "temporary: The revocation status of the vehicle's contract is not known now; try again."
NOTHING = {"iso2": "FAILED_NoCertificateAvailable", "iso20": "WARNING_NoCertificateAvailable"}


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_contract_that_is_revoked_after_it_was_stored_is_not_delivered(around: Pool, edition: str) -> None:
    car = around.car(edition)
    contract = around.publish(car)
    assert around.ask(car)[0]["emaid"] == contract.emaid
    revoke(around, Certificate.load(contract.certificate), around.pki(edition).emsp_sub2)
    assert negative(around, car)[0] == NOTHING[edition]
    assert around.post(car, headers={"alwaysReturnEXI": "false"}).status_code == 404


def test_a_revoked_contract_leaves_the_others_of_a_vehicle_deliverable(around: Pool) -> None:
    car = around.car("iso20")
    revoked, other = around.publish(car), around.publish(car)
    revoke(around, Certificate.load(revoked.certificate), around.pki("iso20").emsp_sub2)
    assert [item["emaid"] for item in around.ask(car)] == [other.emaid]


def test_a_default_that_is_revoked_counts_as_none(around: Pool) -> None:
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


def test_a_list_that_the_sweep_loads_stops_a_delivery(
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
def test_a_vehicle_whose_provisioning_certificate_is_revoked_is_told_so(around: Pool, edition: str) -> None:
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


def test_a_delivery_does_not_wait_for_a_responder_that_hangs(responder: Responder) -> None:
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


# --- Dry run ---------------------------------------------------------------------------------------------------------


def dry(pool: Pool, contract: Contract, caller: str = "cps", **query: str) -> dict[str, Any]:
    """What a dry run says; its shape is checked, and that it leaves nothing behind."""
    before = [pool.sql(f"select count(*) from {table}") for table in ("contract", "vehicle", "emaid_claim", "outbox")]
    answer = pool.put(contract, caller, **{"dryRun": "true", **query})
    assert answer.status_code == 200, answer.text
    after = [pool.sql(f"select count(*) from {table}") for table in ("contract", "vehicle", "emaid_claim", "outbox")]
    assert after == before
    report: dict[str, Any] = answer.json()
    assert sorted(report) == ["at", "checks", "message", "passed", "warnings"]
    assert report["message"] == "CertificateInstallationRes"
    assert datetime.fromisoformat(report["at"]).tzinfo is not None
    assert [check["number"] for check in report["checks"]] == list(range(1, len(report["checks"]) + 1))
    for check in report["checks"]:
        assert sorted(check) == ["evidence", "number", "reason", "subject", "verdict"]
        assert check["verdict"] in ("passed", "failed", "not applicable")
        assert bool(check["reason"]) is (check["verdict"] != "passed")
    assert report["passed"] is all(check["verdict"] == "passed" for check in report["checks"])
    return report


def failures(report: dict[str, Any]) -> list[str]:
    return [check["reason"] for check in report["checks"] if check["verdict"] == "failed"]


def same_as_real(pool: Pool, contract: Contract) -> list[str]:
    """The sentences of the real PUT, each of which the dry run before gave as a reason."""
    report = dry(pool, contract)
    assert report["passed"] is False
    messages = sentences(pool.put(contract), 400)
    assert all(sentence in " ".join(failures(report)) for sentence in messages)
    assert pool.stored(contract.emaid) == 0
    return messages


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_dry_run_tells_every_check_with_what_it_rests_on_and_stores_nothing(around: Pool, edition: str) -> None:
    car = around.car(edition)
    contract = around.contract(car)
    report = dry(around, contract)
    assert report["passed"] is True
    evidence_by_subject = {check["subject"]: " ".join(check["evidence"]) for check in report["checks"]}
    assert (
        around.pki(edition).v2g_root.certificate.fingerprint
        in evidence_by_subject["chain of the provisioning service to a V2G root"]
    )
    assert evidence_by_subject["EMAID the same everywhere"] == contract.emaid
    assert "digest of" in evidence_by_subject["signature of the provisioning service"]
    for name in ("provisioning service", "contract"):
        sources = evidence_by_subject[f"revocation of the {name} chain"]
        assert sources.count("is not revoked (OCSP http://127.0.0.1") == 3
    assert not any("names no OCSP or CRL address" in warning for warning in report["warnings"])
    assert around.listed(car) == []
    assert dry(around, contract, dryRun="True")["passed"] is True
    assert around.put(contract, dryRun="false").status_code == 201


def test_certificates_that_name_no_address_are_warned_of_once_each(around: Pool) -> None:
    report = dry(around, around.contract(around.car(), signer="plain"))
    assert report["passed"] is True
    assert sum("names no OCSP or CRL address" in warning for warning in report["warnings"]) == 6


@pytest.mark.parametrize("signer", [None, "plain"])
def test_a_signature_that_does_not_hold_is_told_by_a_dry_run_as_by_the_real_put(
    around: Pool, signer: str | None
) -> None:
    (message,) = same_as_real(around, unsigned(around.contract(around.car(), signer=signer)))
    assert "ignature" in message


def unsigned(contract: Contract) -> Contract:
    """The same with a signature value that does not hold."""
    message = exi.decode(contract.message)
    assert isinstance(message, iso2.V2G_Message)
    signature = message.Header.Signature
    assert signature is not None
    value = bytes((signature.SignatureValue.value[0] ^ 1,)) + signature.SignatureValue.value[1:]
    signature = signature._replace(SignatureValue=signature.SignatureValue._replace(value=value))
    encoded = exi.encode(message._replace(Header=message.Header._replace(Signature=signature)))
    body = {**contract.body, "certificateInstallationRes": base64.b64encode(encoded).decode()}
    return replace(contract, message=encoded, body=body)


def test_an_unknown_root_is_told_by_a_dry_run_as_by_the_real_put(around: Pool) -> None:
    assert same_as_real(around, around.contract(around.car(), signer="stranger"))


def test_a_revoked_contract_is_told_by_a_dry_run_as_by_the_real_put(around: Pool, responder: Responder) -> None:
    contract = around.contract(around.car())
    responder.revoked.add(serial(contract))
    assert "revoked" in same_as_real(around, contract)[0]


def test_evidence_that_cannot_be_had_is_a_failed_check_of_a_dry_run_and_no_503() -> None:
    pki = pki_with_responder(f"http://127.0.0.1:{unused_port()}", "eMSP Sub2 CA SIM")
    with start({"iso2": pki}, egress_allow_networks=LOOPBACK) as pool:
        contract = pool.contract(pool.car())
        report = dry(pool, contract)
        (failed,) = failures(report)
        assert sentences(pool.put(contract), 503) == [failed]
        assert "cannot be established now" in failed


def test_an_emaid_that_does_not_fit_is_told_by_a_dry_run_as_by_the_real_put(around: Pool) -> None:
    contract = around.contract(around.car())
    contract.body["emaid"] = "DEEXAX99999999"
    assert "DEEXAX99999999" in same_as_real(around, contract)[0]


def test_dry_run_reports_revocation_of_the_cps_beside_other_failures(around: Pool, responder: Responder) -> None:
    contract = around.contract(around.car())
    contract.body["emaid"] = "DEEXAX99999999"
    asked = responder.server.count("/iso2" + path_of("eMSP Sub2 CA SIM"))
    report = dry(around, contract)
    (failed,) = failures(report)
    assert "DEEXAX99999999" in failed
    (revocation,) = [check for check in report["checks"] if check["subject"] == "revocation of the contract chain"]
    assert [line.partition(" is not revoked (OCSP http://")[1] != "" for line in revocation["evidence"]] == [True] * 3
    assert responder.server.count("/iso2" + path_of("eMSP Sub2 CA SIM")) == asked + 1


def revocations(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Verdict and reason, by whose chain it is."""
    prefix = "revocation of the "
    return {
        check["subject"].removeprefix(prefix): (check["verdict"], check["reason"])
        for check in report["checks"]
        if check["subject"].startswith(prefix)
    }


NOT_ASKED = ("not applicable", "It is asked only for messages that a trusted provisioning service signed.")


@pytest.mark.parametrize("wrong", ["signature", "chain"])
def test_a_dry_run_asks_nobody_about_a_message_that_no_trusted_service_signed(
    around: Pool, responder: Responder, wrong: str
) -> None:
    if wrong == "chain":
        stranger = pki_with_responder(responder.server.url + "/strangers")
        responder.register(*cas(stranger), prefix="/strangers")
        contract = around.contract(around.car(), signer=stranger)
    else:
        contract = unsigned(around.contract(around.car()))
    before = len(responder.server.received)
    report = dry(around, contract)
    assert set(revocations(report).values()) == {NOT_ASKED}
    assert report["passed"] is False
    assert len(responder.server.received) == before


def test_a_dry_run_asks_nobody_about_a_contract_chain_that_does_not_hold(around: Pool, responder: Responder) -> None:
    stranger = pki_with_responder(responder.server.url + "/strangers")
    responder.register(*cas(stranger), prefix="/strangers")
    car, emaid = around.car(), new_emaid()
    bundle = issue_contract(stranger, emaid, car.pcid, car.provisioning.certificate, AT)
    message = sign_contract(around.pki(), bundle, AT)
    contract = Contract(emaid, message, put_body(message, emaid, car.pcid, str(car.namespace)), b"")
    report = dry(around, contract)
    assert revocations(report)["provisioning service chain"] == ("passed", "")
    assert revocations(report)["contract chain"] == ("not applicable", "An earlier check failed.")
    assert not [request for request in responder.server.received if request.path.startswith("/strangers")]


def test_a_publisher_is_told_how_long_a_responder_that_is_down_is_left_alone() -> None:
    pki = pki_with_responder(f"http://127.0.0.1:{unused_port()}", "eMSP Sub2 CA SIM")
    with start({"iso2": pki}, egress_allow_networks=LOOPBACK) as pool:
        contract = pool.contract(pool.car())
        answers = [pool.put(contract) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [503] * 4
        waits = [int(answer.headers["Retry-After"]) for answer in answers]
        assert waits[:2] == [2, 2]
        # The third failure in a row opens the host's circuit; later lookups send no request.
        assert waits[2] == 30
        assert 25 <= waits[3] <= 30


def test_a_dry_run_is_for_those_who_may_publish(around: Pool) -> None:
    contract = around.contract(around.car())
    for caller in ("cpo", "oem", "other_emsp"):
        sentences(around.put(contract, caller, dryRun="true"), 403)
    contract.body["emaid"] = "NLEXBX99999999"
    sentences(around.put(contract, "small_cps", dryRun="true"), 403)


@pytest.mark.parametrize("value", ["maybe", "1", "yes", ""])
def test_a_dry_run_is_asked_for_by_true_or_false_only(around: Pool, value: str) -> None:
    contract = around.contract(around.car())
    assert sentences(around.put(contract, dryRun=value), 400) == ["dryRun : must be true or false"]
    assert around.stored(contract.emaid) == 0


def test_a_dry_run_of_what_is_no_message_is_400(around: Pool) -> None:
    contract = around.contract(around.car())
    contract.body["certificateInstallationRes"] = "gJgA"
    assert sentences(around.put(contract, dryRun="true"), 400)[0] == "EXI format is invalid!"


# --- Warnings --------------------------------------------------------------------------------------------------------


def warnings(pool: Pool, contract: Contract) -> str:
    report = dry(pool, contract)
    assert report["passed"] is True, failures(report)
    return "\n".join(report["warnings"])


def test_a_response_that_some_charging_stations_cannot_take_is_warned_of(around: Pool) -> None:
    contract = around.contract(around.car("iso20"))
    length = len(contract.body["certificateInstallationRes"])
    assert length > 5600
    limit = 5600 if length <= 7500 else 7500
    expected = f"The response has {length} characters in Base64; some charging stations take {limit} at most."
    assert expected in warnings(around, contract)
    assert "characters" not in warnings(around, around.contract(around.car()))


def test_a_contract_that_soon_expires_is_warned_of(around: Pool) -> None:
    end = AT + 10 * DAY
    contract = around.contract(around.car(), valid=(AT - DAY, end))
    messages = warnings(around, contract)
    assert f"{contract.emaid}" in messages
    assert f"expires on {end:%Y-%m-%d}." in messages
    assert "expires" not in warnings(around, around.contract(around.car(), valid=(AT - DAY, AT + 31 * DAY)))


def with_sha1_identifier(credential: Credential, issuer: Credential) -> Credential:
    """The same certificate, but for a key identifier as most software makes it by default."""
    old = credential.certificate.x509
    builder = x509.CertificateBuilder(
        issuer.certificate.x509.subject, old.subject, old.public_key(), old.serial_number,
        old.not_valid_before_utc, old.not_valid_after_utc,
    )  # fmt: skip
    for extension in old.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectKeyIdentifier):
            value = x509.SubjectKeyIdentifier.from_public_key(old.public_key())
        builder = builder.add_extension(value, extension.critical)
    der = builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)
    return replace(credential, certificate=Certificate.load(der))


def test_a_key_identifier_of_twenty_bytes_is_warned_of(around: Pool) -> None:
    pki = around.pki("plain")
    pki = replace(pki, cps=with_sha1_identifier(pki.cps, pki.cps_sub2))
    contract = around.contract(around.car(), signer=pki)
    messages = warnings(around, contract)
    assert "has a key identifier of 20 bytes, as SHA-1 makes; the field has eight." in messages
    assert "CPS SIM" in messages


def test_a_leaf_that_does_not_say_what_its_key_is_for_is_warned_of(around: Pool) -> None:
    pki = around.pki("plain")
    pki = replace(pki, cps=pki.cps_sub2.issue("CPS SIM", replace(CPS, key_usage=frozenset()), now=AT))
    messages = warnings(around, around.contract(around.car(), signer=pki))
    assert messages.count("does not say what its key is for.") == 1
