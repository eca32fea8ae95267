"""Erasure: no data about the contract or the vehicle is left, and the audit trail verifies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ccp.ids import EMAID
from ccp.server.audit.actor import command_actor
from ccp.server.storage.queries import audit as queries
from ccp.server.storage.queries.audit import Filter
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from ccp.x509.certificates import Certificate
from tests.cli.run import ccp_error, ccp_ok
from tests.databases import tables
from tests.server.audit.made import entry, vehicle_of
from tests.server.http.ocpp.payloads import ask, payload
from tests.server.storage.made import broken_invariants, new_database, sql, write
from tests.world import Contract, Pool, new_emaid, new_pcid, start

ISSUER = "11" * 32
EVIDENCE = ("evidence", "watched_certificate")


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start(pkis) as running:
        yield running


@pytest.fixture
def config(pool: Pool, tmp_path: Path) -> Path:
    config = tmp_path / "ccp.toml"
    config.write_text(f'database = "{pool.settings.database}"\nbase_url = "{pool.base_url}"\nlog_level = "error"\n')
    return config


def naming(pool: Pool, named: str) -> dict[str, int]:
    """The number of rows by table that contain an id in any column: as text, in JSON or in binary data."""
    found = {}
    for table in tables(pool.settings.database):
        rows = pool.sql(f"select * from {table}")
        count = sum(any(_names(value, named) for value in row) for row in rows)
        if count:
            found[table] = count
    return found


def _names(value: Any, named: str) -> bool:
    data = value if isinstance(value, bytes) else str(value).encode()
    return named.encode() in data.upper()


def watch(pool: Pool, certificate: Certificate, *key: str) -> None:
    """As the revocation service does with a certificate whose state it asks for. key: issuer and serial number."""
    insert = "insert into watched_certificate values (?, ?, ?, ?, ?, 0)"
    pool.sql(insert, *key, certificate.der, b"issuer", 2**33)
    pool.sql("insert into evidence values (?, ?, 'good', 0, ?, null, 'OCSP')", *key, 2**60)


def lived(pool: Pool) -> tuple[Car, Contract, Contract]:
    """A vehicle with two contracts, of which one came from another vehicle, and a refused access to each."""
    car = pool.car()
    contract, other = pool.publish(car), pool.publish(pool.car())
    pool.publish(car, other.emaid)
    pool.publish(car, contract.emaid, signer="other_iso2")
    assert pool.oem.post(f"/signedcontractdata/{other.emaid}/{car.pcid}/setdefault").status_code == 200
    pool.client(None).get(f"/signedcontractdata/{contract.emaid}/{car.pcid}")
    select = "select certificate_issuer, certificate_serial from contract where certificate = ?"
    watch(pool, car.provisioning.certificate, ISSUER, f"a{car.pcid[-8:]}")
    watch(pool, Certificate.load(other.certificate), ISSUER, f"b{car.pcid[-8:]}")  # Replaced by now.
    watch(pool, Certificate.load(contract.certificate), *pool.sql(select, contract.certificate)[0])
    rows_naming(pool, car.pcid, 5)  # Or the refusal would be written after an erasure.
    return car, contract, other


def rows_naming(pool: Pool, named: str, at_least: int) -> int:
    """Refused access is written a moment later."""
    for _ in range(50):
        count = len(pool.change(queries.rows_naming(named)))
        if count >= at_least:
            return count
        time.sleep(0.05)
    raise AssertionError(count)


def erased(config: Path, *options: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(ccp_ok("erase", *options, "--json", "--yes", "--config", config).out)
    return report


def whole(config: Path) -> dict[str, Any]:
    verdict: dict[str, Any] = json.loads(ccp_ok("audit", "verify", "--json", "--config", config).out)
    assert verdict["broken"] == []
    return verdict


def test_contract_is_erased_everywhere_and_the_car_maker_is_told(pool: Pool, config: Path) -> None:
    car, contract, other = lived(pool)
    count = rows_naming(pool, contract.emaid, 3)
    before = whole(config)["erased"]
    report = erased(config, "--emaid", contract.emaid)
    assert report == {
        "dry_run": False,
        "erased": {
            "contracts": 1, "variants": 2, "events": 2, "deliveries": 0, "refusals": 0, "evidence": 2,
            "audit_rows": count, "vehicle": 0,
        },
        "events_waiting": 1,
        "files": None,
    }  # fmt: skip
    # What is left is the event that tells the car maker.
    assert naming(pool, contract.emaid) == {"outbox": 1}
    assert pool.sql("select kind from outbox where emaid = ?", str(contract.emaid)) == [("oem.contract.deleted",)]
    assert [item["emaid"] for item in pool.listed(car)] == [other.emaid]
    assert whole(config)["erased"] == before + count
    assert broken_invariants(pool.settings.database) == []


def test_contract_is_erased_everywhere_when_nobody_is_to_be_told(pool: Pool, config: Path) -> None:
    _, contract, other = lived(pool)
    assert erased(config, "--emaid", contract.emaid, "--no-notify")["events_waiting"] == 0
    assert naming(pool, contract.emaid) == {}
    assert naming(pool, other.emaid)["contract"] == 1
    whole(config)
    assert broken_invariants(pool.settings.database) == []


def test_vehicle_is_erased_everywhere_with_its_contracts(pool: Pool, config: Path) -> None:
    car, contract, other = lived(pool)
    count = rows_naming(pool, car.pcid, 5)
    report = erased(config, "--pcid", car.pcid, "--no-notify")
    assert (report["erased"]["contracts"], report["erased"]["variants"], report["erased"]["vehicle"]) == (2, 3, 1)
    assert (report["erased"]["evidence"], report["erased"]["audit_rows"]) == (6, count)
    assert naming(pool, car.pcid) == {}
    assert pool.listed(car) == []
    assert pool.stored(contract.emaid) == pool.stored(other.emaid) == 0
    # Of the other vehicle's past it is still known that the contract was published for it.
    assert naming(pool, other.emaid) == {"audit": 1, "outbox": 2}
    whole(config)
    assert broken_invariants(pool.settings.database) == []


@pytest.mark.parametrize("by", ["emaid", "pcid"])
def test_erasure_forgets_deliveries_one_by_one(pool: Pool, config: Path, by: str) -> None:
    car, other = pool.car("iso20"), pool.car("iso20")
    contract = pool.publish(car)
    for each in (car, other, other):
        pool.publish(each)
    for each in (car, other):
        assert ask(pool, payload(each), "2.1")["remainingContracts"] == 1
    named = contract.emaid if by == "emaid" else car.pcid
    assert erased(config, f"--{by}", named, "--no-notify")["erased"]["deliveries"] == 1
    assert naming(pool, named) == {}
    assert naming(pool, other.pcid)["handed_out"] == 1


def test_purge_command_forgets_deliveries_that_have_expired(pool: Pool, config: Path) -> None:
    car = pool.car("iso20")
    for _ in range(2):
        pool.publish(car)
    ask(pool, payload(car), "2.1")
    ccp_ok("purge", "--yes", "--config", config)
    assert naming(pool, car.pcid)["handed_out"] == 1
    pool.sql("update handed_out set expires_at = 1 where pcid = ?", str(car.pcid))
    ccp_ok("purge", "--yes", "--config", config)
    assert "handed_out" not in naming(pool, car.pcid)


def test_vehicle_that_is_erased_is_gone_once_its_events_are_sent(pool: Pool, config: Path) -> None:
    car, *_ = lived(pool)
    report = erased(config, "--pcid", car.pcid)
    assert (report["erased"]["vehicle"], report["events_waiting"]) == (0, 2)
    assert naming(pool, car.pcid) == {"outbox": 2, "vehicle": 1}
    assert {kind for (kind,) in pool.sql("select kind from outbox where pcid = ?", str(car.pcid))} == {
        "oem.contract.deleted"
    }
    pool.sql("delete from outbox where pcid = ?", str(car.pcid))
    assert erased(config, "--pcid", car.pcid)["erased"]["vehicle"] == 1
    assert naming(pool, car.pcid) == {}
    whole(config)


def test_vehicle_that_was_erased_can_have_contracts_again(pool: Pool, config: Path) -> None:
    car, *_ = lived(pool)
    erased(config, "--pcid", car.pcid)
    emaid = pool.publish(car).emaid
    assert [item["emaid"] for item in pool.ask(car)] == [emaid]
    erased(config, "--pcid", car.pcid, "--no-notify")
    pool.publish(car, emaid)
    assert [item["emaid"] for item in pool.ask(car)] == [emaid]
    assert broken_invariants(pool.settings.database) == []


def test_dry_run_says_the_same_and_changes_nothing(pool: Pool, config: Path) -> None:
    car, contract, _ = lived(pool)
    rows_naming(pool, contract.emaid, 3)

    def content() -> list[Any]:
        tables = ("contract", "emaid_claim", "vehicle", "outbox", "audit", "audit_head")
        rows = [sorted(pool.sql(f"select * from {table}"), key=repr) for table in tables]
        # The pool refreshes and watches the evidence of certificates meanwhile, but never that of this made-up issuer.
        keys = [pool.sql(f"select serial from {table} where issuer = ? order by serial", ISSUER) for table in EVIDENCE]
        return [*rows, *keys]

    before = content()
    dry = {kind: erased(config, *kind, "--dry-run") for kind in (("--emaid", contract.emaid), ("--pcid", car.pcid))}
    assert content() == before
    assert {rehearsal["dry_run"] for rehearsal in dry.values()} == {True}
    for kind, rehearsal in dry.items():
        if kind[0] == "--emaid":
            assert erased(config, *kind)["erased"] == rehearsal["erased"]


def test_row_of_an_erasure_says_who_and_how_much_and_names_no_id(pool: Pool, config: Path) -> None:
    car, contract, other = lived(pool)
    erased(config, "--emaid", contract.emaid, "--no-notify")
    (row, *_) = pool.change(queries.search(Filter(action="data.erased"), 1))
    assert row.actor == command_actor()
    subject = json.loads(row.subject)
    assert (subject["kind"], subject["contracts"]) == ("emaid", 1)
    assert all(len(place) == 2 for place in subject["rows"])
    assert not any(named in row.subject for named in (contract.emaid, car.pcid, other.emaid))


def test_erase_records_an_unknown_id_too(pool: Pool, config: Path) -> None:
    for option, named in (("--emaid", new_emaid()), ("--pcid", new_pcid())):
        before = len(pool.change(queries.search(Filter(action="data.erased"), 1000)))
        report = erased(config, option, named)
        assert set(report["erased"].values()) == {0}
        assert len(pool.change(queries.search(Filter(action="data.erased"), 1000))) == before + 1
    whole(config)


def test_erase_leaves_another_contract_whose_id_begins_the_same(pool: Pool, config: Path) -> None:
    car, emaid = pool.car(), new_emaid()
    longer = next(each for each in map(EMAID.parse, (f"{emaid}0", f"{emaid}1")) if each != emaid)  # No check digit.
    pool.publish(car, emaid)
    watch(pool, Certificate.load(pool.publish(car, longer).certificate), ISSUER, f"c{car.pcid[-8:]}")
    report = erased(config, "--emaid", emaid)["erased"]
    assert (report["contracts"], report["evidence"], report["audit_rows"]) == (1, 0, 1)
    assert pool.stored(longer) == 1
    assert naming(pool, longer)["watched_certificate"] == 1


def test_erase_keeps_the_revocation_of_a_certificate(pool: Pool, config: Path) -> None:
    contract = pool.publish(pool.car())
    watch(pool, Certificate.load(contract.certificate), ISSUER, "dd")
    pool.sql("update evidence set status = 'revoked' where serial = 'dd'")
    erased(config, "--emaid", contract.emaid, "--no-notify")
    assert pool.sql("select status from evidence where serial = 'dd'") == [("revoked",)]
    assert naming(pool, contract.emaid) == {}


def test_id_is_read_in_every_form_and_exactly_one_is_asked_for(pool: Pool, config: Path) -> None:
    emaid = pool.publish(pool.car()).emaid
    hyphens = f"{emaid[:2]}-{emaid[2:5]}-{emaid[5:]}".lower()
    assert erased(config, "--emaid", hyphens)["erased"]["contracts"] == 1
    assert ccp_error("erase", "--config", config) == "Give either --emaid or --pcid."
    assert (
        ccp_error("erase", "--emaid", emaid, "--pcid", new_pcid(), "--config", config)
        == "Give either --emaid or --pcid."
    )
    assert "pcid : must match" in ccp_error("erase", "--pcid", "short", "--config", config)


def test_erase_prints_what_it_removed(pool: Pool, config: Path) -> None:
    contract = pool.publish(pool.car())
    assert ccp_ok("erase", "--emaid", contract.emaid, "--dry-run", "--config", config).lines[:3] == [
        "   1  contract(s) would be erased",
        "   1  signed response(s) would be erased",
        "   1  unsent event(s) would be erased",
    ]
    done = ccp_ok("erase", "--emaid", contract.emaid, "--yes", "--config", config).lines
    assert done[-3:-1] == ["   1  audit row(s) lost their subject", "   0  vehicle(s) erased"]
    assert done[-1].startswith("1 event(s) to the car maker still name it until they are sent")


def test_row_that_is_erased_is_found_by_its_actor_and_no_more_by_its_id(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    car = vehicle_of(1)
    write(url, queries.record(entry(car)))
    config = tmp_path / "ccp.toml"
    config.write_text(f'database = "{url}"\nlog_level = "error"\n')
    erased(config, "--pcid", car)
    assert json.loads(ccp_ok("audit", "list", "--pcid", car, "--json", "--config", config).out) == []
    (row,) = json.loads(ccp_ok("audit", "list", "--actor", "cps", "--json", "--config", config).out)
    assert (row["subject"], row["trace_id"]) == (None, "trace-0")
    assert "(erased)" in ccp_ok("audit", "list", "--config", config).out
    assert sql(url, "select subject, salt from audit where actor = 'cps'") == [(None, None)]
