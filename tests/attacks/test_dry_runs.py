"""Dry runs of PUT: they report what PUT would refuse because of the vehicle's contracts, and change nothing."""

from __future__ import annotations

from typing import Any

import pytest

from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.scripted_server import CLOSE, Reply, json_reply, scripted
from tests.server.external.examples import chain_body
from tests.server.http.api.answers import sentences
from tests.world import Contract, Pool, new_emaid, start

KNOWN = "vehicle known to the Provisioning Certificate Pool"
CONTRACTS = "contracts of the vehicle"
UNSIGNED = "It is checked only for messages that a trusted provisioning service signed."
TABLES = ("contract", "vehicle", "emaid_claim", "outbox", "audit")


def state(pool: Pool) -> list[Any]:
    return [sorted(pool.sql(f"select * from {table}"), key=str) for table in TABLES]


def checks(pool: Pool, contract: Contract) -> dict[str, dict[str, Any]]:
    """The checks of a dry run by subject; asserts that nothing changed."""
    before = state(pool)
    answer = pool.cps.put("/signedcontractdata", json=contract.body, params={"dryRun": "true"})
    assert answer.status_code == 200, answer.text
    assert state(pool) == before
    reported = answer.json()
    assert reported["passed"] is all(check["verdict"] == "passed" for check in reported["checks"])
    return {check["subject"]: check for check in reported["checks"]}


def failed(pool: Pool, contract: Contract) -> dict[str, str]:
    return {name: check["reason"] for name, check in checks(pool, contract).items() if check["verdict"] == "failed"}


def refused(pool: Pool, contract: Contract, status: int = 400) -> str:
    """The error of the real PUT."""
    (sentence,) = sentences(pool.cps.put("/signedcontractdata", json=contract.body), status)
    return sentence


def full(pool: Pool, car: Car) -> Contract:
    """Fill a vehicle with contracts of several providers. Returns one of them."""
    providers = ["NLEXB", "NLEXC", "NLEXD", "NLEXE"]
    return [pool.publish(car, new_emaid(provider)) for provider in providers for _ in range(4)][-1]


def test_dry_run_reports_the_limit_per_vehicle(pool: Pool) -> None:
    car = pool.car()
    last = full(pool, car)
    another = pool.contract(car, new_emaid("NLEXG"))
    assert failed(pool, another) == {CONTRACTS: refused(pool, another)}
    assert failed(pool, pool.contract(car, last.emaid)) == {}  # It replaces.
    assert failed(pool, pool.contract(car, new_emaid("NLEXB"))) == {
        CONTRACTS: "The vehicle has 4 contracts of this provider already; delete one first."
    }


def test_dry_run_reports_the_limit_per_provider(pool: Pool) -> None:
    car = pool.car("iso20")
    for _ in range(4):
        pool.publish(car)
    fifth = pool.contract(car)
    assert failed(pool, fifth) == {CONTRACTS: refused(pool, fifth)}


def test_dry_run_reports_a_move_and_a_refused_move(pool: Pool) -> None:
    crowded, home, free = pool.car(), pool.car(), pool.car()
    full(pool, crowded)
    contract = pool.publish(home, new_emaid("NLEXG"))
    moving = pool.contract(crowded, contract.emaid)
    assert failed(pool, moving) == {CONTRACTS: refused(pool, moving)}
    assert pool.stored(contract.emaid) == 1
    statement = checks(pool, pool.contract(free, contract.emaid))[CONTRACTS]
    assert statement["verdict"] == "passed"
    assert "moves to this vehicle" in statement["evidence"][0]
    assert str(home.pcid) not in str(statement)
    assert [item["emaid"] for item in pool.listed(home)] == [contract.emaid]


def test_dry_run_reports_new_and_existing_contracts(pool: Pool) -> None:
    car = pool.car()
    contract = pool.contract(car)
    assert checks(pool, contract)[CONTRACTS]["evidence"] == ["The contract is new."]
    pool.publish(car, contract.emaid)
    assert "has the contract" in checks(pool, contract)[CONTRACTS]["evidence"][0]


def test_dry_run_reports_an_unknown_vehicle(pkis: dict[str, PKI]) -> None:
    with scripted() as pcp, start(pkis, pcp_url=pcp.url) as pool:
        known, unknown = pool.car(), pool.car()
        pcp.on(f"/provisioningcertificates/{known.pcid}", json_reply(chain_body(known.provisioning)))
        contract = pool.contract(known)
        assert checks(pool, contract)[KNOWN]["verdict"] == "passed"
        pcp.on("*", Reply(404))
        contract = pool.contract(unknown)
        assert failed(pool, contract) == {KNOWN: refused(pool, contract)}
        pcp.on("*", CLOSE)
        assert failed(pool, contract) == {KNOWN: refused(pool, contract, 503)}
        asked = len(pcp.received)
        stranger = pool.contract(unknown, signer="stranger")
        reported = checks(pool, stranger)
        assert {reported[name]["reason"] for name in (KNOWN, CONTRACTS)} == {UNSIGNED}
        assert len(pcp.received) == asked
    with scripted() as pcp, start(pkis, pcp_url=pcp.url, require_known_vehicle=False) as pool:
        pcp.on("*", Reply(404))
        contract = pool.contract(pool.car())
        assert KNOWN not in checks(pool, contract)
        assert failed(pool, contract) == {}


@pytest.mark.parametrize("limits", [{"max_contracts_per_vehicle": 1}, {"max_contracts_per_vehicle_and_provider": 1}])
def test_dry_run_uses_the_limits_of_the_settings(pkis: dict[str, PKI], limits: dict[str, int]) -> None:
    with start({"iso2": pkis["iso2"]}, **limits) as pool:
        car = pool.car()
        pool.publish(car, new_emaid("NLEXB"))
        provider = "NLEXC" if "max_contracts_per_vehicle" in limits else "NLEXB"
        second = pool.contract(car, new_emaid(provider))
        assert failed(pool, second) == {CONTRACTS: refused(pool, second)}
