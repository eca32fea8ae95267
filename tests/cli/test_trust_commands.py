"""ccp purge, and ccp verify on what a pool holds: with a running pool's own database."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ccp.exi import iso2
from ccp.server.storage.queries import anchors, revocation
from ccp.server.trust.anchors import trusted_certificate
from ccp.testing.partners import Car
from ccp.testing.pki import PKI, StatusURLs
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import AnchorRole
from ccp.x509.revocation_evidence import Evidence, RevocationStatus
from tests.cli.run import CommandResult, ccp, ccp_error, ccp_ok, ccp_process, environment
from tests.world import AT, SESSION, Contract, Pool, new_emaid, new_pcid, start

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture(scope="module")
def shared(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start(pkis, purge_interval=0) as pool:
        yield pool


@pytest.fixture
def around(shared: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """A pool that runs and holds nothing, and a directory whose configuration names its database."""
    for table in ("contract", "vehicle", "emaid_claim", "outbox", "evidence"):
        shared.sql(f"delete from {table}")
    configure(tmp_path, shared)
    monkeypatch.chdir(tmp_path)
    return shared


def configure(folder: Path, pool: Pool, **settings: object) -> None:
    lines = {"database": pool.settings.database, **settings}
    (folder / "ccp.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()))


def revoke(pool: Pool, contract: Contract, edition: str = "iso2") -> None:
    """As if a responder had evidence so."""
    issuer = pool.pki(edition).emsp_sub2.certificate.issuer_key_id
    number = Certificate.load(contract.certificate).serial_number
    evidence = Evidence(issuer, number, RevocationStatus.REVOKED, AT, AT + HOUR, AT - DAY, "OCSP test")
    assert pool.change(revocation.store_evidence(evidence)) is True


def deleted(pool: Pool) -> list[str]:
    """The contracts whose removal the vehicle's maker will be told of."""
    return [emaid for (emaid,) in pool.sql("select emaid from outbox where kind = 'oem.contract.deleted'")]


def purged(*arguments: str, **how: Any) -> dict[str, str]:
    """What is removed, with the reason."""
    return {
        each["emaid"]: each["reason"] for each in json.loads(ccp_ok("purge", "--yes", "--json", *arguments, **how).out)
    }


# --- Purging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_purge_removes_expired_and_revoked_contracts(around: Pool, edition: str) -> None:
    cars = [around.car(edition) for _ in range(3)]
    expired, revoked, fine = (around.publish(car) for car in cars)
    around.expire(expired.emaid)
    revoke(around, revoked, edition)
    spent = {expired.emaid: "expired", revoked.emaid: "revoked"}
    assert purged("--dry-run") == spent
    assert ccp_ok("purge", "--dry-run").lines[-1] == "2 contract(s) would be removed."
    assert [around.stored(one.emaid) for one in (expired, revoked, fine)] == [1, 1, 1]
    assert deleted(around) == []
    lines = ccp_ok("purge", "--yes").lines
    assert lines[-1] == "2 contract(s) removed."
    assert any(line.split() == [expired.emaid, str(cars[0].pcid), "expired"] for line in lines)
    assert [around.stored(one.emaid) for one in (expired, revoked, fine)] == [0, 0, 1]
    assert sorted(deleted(around)) == sorted(spent)
    assert purged() == {}
    assert ccp_ok("purge", "--yes").lines[-1] == "0 contract(s) removed."
    assert sorted(deleted(around)) == sorted(spent)
    assert around.ask(cars[2])[0]["emaid"] == fine.emaid
    assert around.sql("select count(*) from emaid_claim") == [(1,)]  # the EMAIDs are free again


def test_purge_keeps_a_contract_with_a_valid_variant(around: Pool) -> None:
    car, emaid = around.car(), new_emaid()
    around.publish(car, emaid)
    around.publish(car, emaid, signer="other_iso2")
    assert around.stored(emaid) == 2
    first = around.pki("iso2").v2g_root.certificate.fingerprint
    late = int((AT - HOUR).timestamp())
    around.sql("update contract set valid_to = ? where emaid = ? and root_fingerprint = ?", late, emaid, first)
    assert purged() == {}
    assert around.stored(emaid) == 2
    around.sql("update contract set valid_to = ? where emaid = ?", late, emaid)
    assert purged() == {emaid: "expired"}
    assert around.stored(emaid) == 0


def test_purge_keeps_a_contract_within_the_grace_period(around: Pool, tmp_path: Path) -> None:
    contract = around.publish(around.car())
    around.expire(contract.emaid)
    configure(tmp_path, around, purge_grace=3600)
    assert purged() == {}
    assert around.stored(contract.emaid) == 1
    around.sql("update contract set valid_to = valid_to - 3600")
    assert purged() == {contract.emaid: "expired"}


def test_purge_removes_a_revoked_contract_without_grace(around: Pool) -> None:
    contract = around.publish(around.car())
    revoke(around, contract)
    assert purged(env={"CCP_PURGE_GRACE": "3600"}) == {contract.emaid: "revoked"}


def test_purge_json_prints_only_json(around: Pool) -> None:
    contract = around.publish(around.car())
    around.expire(contract.emaid)
    done = ccp_process("purge", "--yes", "--json", env=environment())
    assert done.returncode == 0, done.stderr
    (each,) = json.loads(done.stdout)
    assert each == {"emaid": contract.emaid, "pcid": contract.body["pcid"], "reason": "expired"}


def test_purge_runs_on_a_schedule(pkis: dict[str, PKI]) -> None:
    with start(pkis, purge_interval=1) as pool:
        contract, fine = pool.publish(pool.car()), pool.publish(pool.car())
        pool.expire(contract.emaid)
        deadline = time.monotonic() + 30
        while pool.stored(contract.emaid):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert deleted(pool) == [contract.emaid]
        assert pool.stored(fine.emaid) == 1


# --- Verifying what is held ------------------------------------------------------------------------------------------


def reports(*arguments: object, status: int = 0) -> Any:
    done = ccp("verify", "--json", *arguments)
    assert done.status == status, done
    return json.loads(done.out)


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_verify_stored_messages_of_a_contract_or_vehicle(around: Pool, edition: str) -> None:
    car = around.car(edition)
    first, second = around.publish(car), around.publish(car)
    (report,) = reports("--emaid", first.emaid)
    assert report["passed"] is True
    assert report["message"] == f"{first.emaid} for {car.pcid} ({car.namespace})"
    found = reports("--pcid", car.pcid)
    assert {one["message"].split()[0] for one in found} == {first.emaid, second.emaid}
    assert all(one["passed"] for one in found)
    lines = ccp_ok("verify", "--pcid", car.pcid).lines
    assert lines.count("verified") == 2
    assert any("names no OCSP or CRL address" in line for line in lines)


def test_verify_stored_reports_revoked_and_expired(around: Pool) -> None:
    car = around.car()
    contract, fine = around.publish(car), around.publish(car)
    revoke(around, contract)
    (report,) = reports("--emaid", contract.emaid, status=1)
    assert report["passed"] is False
    (reason,) = [check["reason"] for check in report["checks"] if check["verdict"] == "failed"]
    assert contract.emaid in reason
    assert "was revoked" in reason
    assert sorted(one["passed"] for one in reports("--pcid", car.pcid, status=1)) == [False, True]
    assert ccp("verify", "--emaid", contract.emaid).lines[-1] == "NOT verified"
    late = (AT + 2000 * DAY).isoformat()
    (report,) = reports("--emaid", fine.emaid, "--at", late, status=1)
    assert any("in the past" in check["reason"] for check in report["checks"])


def test_verify_stored_checks_every_variant(around: Pool) -> None:
    car, emaid = around.car(), new_emaid()
    around.publish(car, emaid)
    around.publish(car, emaid, signer="other_iso2")
    assert [one["passed"] for one in reports("--emaid", emaid)] == [True, True]


def test_verify_stored_reports_an_unknown_id(around: Pool) -> None:
    assert ccp_error("verify", "--emaid", new_emaid()) == "The pool stores no such message."
    assert ccp_error("verify", "--pcid", new_pcid(), "--json") == "The pool stores no such message."
    assert ccp_error("verify", "--emaid", "nonsense")
    assert ccp_error("verify", "--pcid", "nonsense")


def test_verify_takes_exactly_one_subject(around: Pool) -> None:
    one = "Give a file, --emaid or --pcid, and only one of them."
    assert ccp_error("verify") == one
    assert ccp_error("verify", "message", "--emaid", new_emaid()) == one
    assert ccp_error("verify", "message", "--pcid", new_pcid()) == one
    assert ccp_error("verify", "--emaid", new_emaid(), "--pcid", new_pcid()) == one
    assert "--trust is for files" in ccp_error("verify", "--emaid", new_emaid(), "--trust", ".")


# --- Verifying a file against the pool -------------------------------------------------------------------------------


def verified(data: bytes, *arguments: object) -> CommandResult:
    return ccp("verify", "-", "--json", *arguments, stdin=data)


def test_verify_response_uses_the_pools_anchors_and_evidence(around: Pool) -> None:
    contract = around.contract(around.car())
    done = verified(contract.message)
    assert done.status == 0, done
    report = json.loads(done.out)
    assert report["message"] == "CertificateInstallationRes (urn:iso:15118:2:2013:MsgDef)"
    assert sum("names no OCSP or CRL address" in warning for warning in report["warnings"]) == 6
    revoke(around, contract)
    done = verified(contract.message)
    assert done.status == 1
    (reason,) = [check["reason"] for check in json.loads(done.out)["checks"] if check["verdict"] == "failed"]
    assert "was revoked" in reason
    done = verified(around.contract(around.car(), signer="stranger").message)
    assert done.status == 1


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_verify_request_warns_of_an_unknown_root(around: Pool, edition: str) -> None:
    car = around.car(edition)
    data = car.request(SESSION, AT)
    done = verified(data)
    assert done.status == 0, done
    assert not any("V2G root" in warning for warning in json.loads(done.out)["warnings"])
    stranger = around.pki("stranger").v2g_root.certificate
    known = around.pki(edition).v2g_root.certificate
    roots = tuple(iso2.X509IssuerSerial(root.subject_dn, root.serial_number) for root in (known, stranger))
    done = verified(car.request(SESSION, AT, roots=roots))
    assert done.status == 0, done
    (warning,) = [each for each in json.loads(done.out)["warnings"] if "V2G root that is not known here" in each]
    assert f"{stranger.serial_number:x}" in warning
    done = ccp("verify", "-", stdin=car.request(SESSION, AT, roots=roots))
    assert f"   ! {warning}" in done.lines


def vehicle_revocation(data: bytes, *, passed: bool) -> tuple[dict[str, Any], list[str]]:
    """The check of the vehicle's revocation, and the warnings."""
    done = verified(data)
    assert done.status == (0 if passed else 1), done
    report = json.loads(done.out)
    (check,) = [each for each in report["checks"] if each["subject"] == "revocation of the provisioning chain"]
    return check, report["warnings"]


def test_verify_request_warns_of_a_certificate_without_address(around: Pool) -> None:
    check, warnings = vehicle_revocation(around.car().request(SESSION, AT), passed=True)
    assert check["evidence"] == warnings
    assert len(warnings) == 3
    assert all("names no OCSP or CRL address" in warning for warning in warnings)


def test_verify_request_uses_policy_and_stored_evidence(around: Pool, tmp_path: Path) -> None:
    """Its source and age are told; what is missing is no hindrance unless it is required; nothing is fetched."""
    pki = PKI.generate(
        AT, status_urls=lambda ca: StatusURLs(ocsp="http://ocsp.invalid") if "OEM Sub2" in ca else StatusURLs()
    )
    for credential, root in ((pki.oem_root, True), (pki.oem_sub1, False), (pki.oem_sub2, False)):
        entry = trusted_certificate(credential.certificate, AnchorRole.OEM, "test", AT)
        assert entry.is_root is root
        assert around.change(anchors.add(entry))
    car = Car.generate(pki, new_pcid(), AT)
    data = car.request(SESSION, AT)
    check, warnings = vehicle_revocation(data, passed=True)
    assert check["evidence"][-1] == "A delivery does not wait for it."
    missing = f'The revocation status of certificate "{car.pcid}" cannot be established now.'
    assert missing in warnings
    assert missing in check["evidence"]
    configure(tmp_path, around, revocation="require")
    check, _ = vehicle_revocation(data, passed=False)
    assert "which this pool requires" in check["reason"]
    configure(tmp_path, around)

    def learn(status: RevocationStatus, revoked_at: datetime | None = None) -> None:
        leaf = car.provisioning.certificate
        since = datetime.now(UTC) - timedelta(minutes=5)
        evidence = Evidence(
            pki.oem_sub2.certificate.issuer_key_id,
            leaf.serial_number,
            status,
            since,
            since + HOUR,
            revoked_at,
            "OCSP test",
        )
        assert around.change(revocation.store_evidence(evidence)) is True

    learn(RevocationStatus.GOOD)
    check, warnings = vehicle_revocation(data, passed=True)
    assert check["evidence"][0] == f'Certificate "{car.pcid}" is not revoked (OCSP test, 5 minutes old).'
    assert missing not in warnings
    learn(RevocationStatus.REVOKED, AT - DAY)
    check, _ = vehicle_revocation(data, passed=False)
    assert check["reason"] == f'Certificate "{car.pcid}" was revoked at {AT - DAY:%Y-%m-%dT%H:%M:%SZ}.'
    configure(tmp_path, around, revocation="off")
    check, _ = vehicle_revocation(data, passed=True)
    assert check["evidence"] == ["Revocation is not checked, by configuration."]


def test_verify_request_follows_vehicle_trust(around: Pool, pkis: dict[str, PKI], tmp_path: Path) -> None:
    data = Car.generate(pkis["stranger"], new_pcid(), AT).request(SESSION, AT)
    assert verified(data).status == 1
    configure(tmp_path, around, vehicle_trust="signature")
    assert verified(data).status == 0
