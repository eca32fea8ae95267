"""Dry run: every check with its result, and warnings."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from ccp import exi
from ccp.exi import iso2
from ccp.testing.partners import issue_contract, sign_contract
from ccp.testing.pki import CPS, Credential
from ccp.x509.certificates import Certificate
from tests.scripted_server import unused_port
from tests.server.http.api.answers import sentences
from tests.server.http.api.responders import LOOPBACK, Responder, path_of, pki_with_responder
from tests.server.http.api.revocable import EDITIONS, cas, serial
from tests.world import AT, Contract, Pool, new_emaid, put_body, start


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


# --- Dry run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", EDITIONS)
def test_dry_run_tells_every_check_with_what_it_rests_on_and_stores_nothing(around: Pool, edition: str) -> None:
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
def test_signature_that_does_not_hold_is_told_by_a_dry_run_as_by_the_real_put(around: Pool, signer: str | None) -> None:
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


def test_dry_run_names_an_unknown_root_as_the_real_put_does(around: Pool) -> None:
    assert same_as_real(around, around.contract(around.car(), signer="stranger"))


def test_dry_run_names_a_revoked_contract_as_the_real_put_does(around: Pool, responder: Responder) -> None:
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


def test_emaid_that_does_not_fit_is_told_by_a_dry_run_as_by_the_real_put(around: Pool) -> None:
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
def test_dry_run_asks_nobody_about_a_message_that_no_trusted_service_signed(
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


def test_dry_run_asks_nobody_about_a_contract_chain_that_does_not_hold(around: Pool, responder: Responder) -> None:
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


def test_publisher_is_told_how_long_a_responder_that_is_down_is_left_alone() -> None:
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


def test_dry_run_is_for_those_who_may_publish(around: Pool) -> None:
    contract = around.contract(around.car())
    for caller in ("cpo", "oem", "other_emsp"):
        sentences(around.put(contract, caller, dryRun="true"), 403)
    contract.body["emaid"] = "NLEXBX99999999"
    sentences(around.put(contract, "small_cps", dryRun="true"), 403)


@pytest.mark.parametrize("value", ["maybe", "1", "yes", ""])
def test_dry_run_is_asked_for_by_true_or_false_only(around: Pool, value: str) -> None:
    contract = around.contract(around.car())
    assert sentences(around.put(contract, dryRun=value), 400) == ["dryRun : must be true or false"]
    assert around.stored(contract.emaid) == 0


def test_dry_run_of_what_is_no_message_is_400(around: Pool) -> None:
    contract = around.contract(around.car())
    contract.body["certificateInstallationRes"] = "gJgA"
    assert sentences(around.put(contract, dryRun="true"), 400)[0] == "EXI format is invalid!"


def warnings(pool: Pool, contract: Contract) -> str:
    report = dry(pool, contract)
    assert report["passed"] is True, failures(report)
    return "\n".join(report["warnings"])


# --- Warnings --------------------------------------------------------------------------------------------------------


def test_response_that_some_charging_stations_cannot_take_is_warned_of(around: Pool) -> None:
    contract = around.contract(around.car("iso20"))
    length = len(contract.body["certificateInstallationRes"])
    assert length > 5600
    limit = 5600 if length <= 7500 else 7500
    expected = f"The response has {length} characters in Base64; some charging stations take {limit} at most."
    assert expected in warnings(around, contract)
    assert "characters" not in warnings(around, around.contract(around.car()))


def test_contract_that_soon_expires_is_warned_of(around: Pool) -> None:
    end = AT + timedelta(days=10)
    contract = around.contract(around.car(), valid=(AT - timedelta(days=1), end))
    messages = warnings(around, contract)
    assert f"{contract.emaid}" in messages
    assert f"expires on {end:%Y-%m-%d}." in messages
    later = around.contract(around.car(), valid=(AT - timedelta(days=1), AT + timedelta(days=31)))
    assert "expires" not in warnings(around, later)


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


def test_key_identifier_of_twenty_bytes_is_warned_of(around: Pool) -> None:
    pki = around.pki("plain")
    pki = replace(pki, cps=with_sha1_identifier(pki.cps, pki.cps_sub2))
    contract = around.contract(around.car(), signer=pki)
    messages = warnings(around, contract)
    assert "has a key identifier of 20 bytes, as SHA-1 makes; the field has eight." in messages
    assert "CPS SIM" in messages


def test_leaf_that_does_not_say_what_its_key_is_for_is_warned_of(around: Pool) -> None:
    pki = around.pki("plain")
    pki = replace(pki, cps=pki.cps_sub2.issue("CPS SIM", replace(CPS, key_usage=frozenset()), now=AT))
    messages = warnings(around, around.contract(around.car(), signer=pki))
    assert messages.count("does not say what its key is for.") == 1
