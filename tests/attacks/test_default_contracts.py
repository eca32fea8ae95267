"""Defaults: what keeps a car from its contract, and who may become its default by publishing first."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from ccp.sim.parties import Car
from ccp.store import contracts
from tests.world import AT, Contract, Pool, new_emaid


def emaids(pool: Pool, car: Car) -> list[str]:
    return [item["emaid"] for item in pool.ask(car)]


def purge(pool: Pool, contract: Contract) -> None:
    """What the scheduled task does with a contract that has expired."""
    now = datetime.now(UTC)
    assert pool.change(contracts.cleanse(contract.emaid, now, now)) is not None


# --- A default that cannot be delivered ------------------------------------------------------------------------------


def test_a_default_in_the_other_edition_does_not_block_the_sole_contract(pool: Pool) -> None:
    """A car with both editions has one PCID; its default is signed for ISO 15118-20 alone."""
    car = pool.car("iso2")
    twenty = Car.build(pool.pki("iso20"), car.pcid, AT)
    default, other = pool.publish(twenty), pool.publish(car)
    assert pool.listed(twenty)[0]["defaultContract"] is True
    assert emaids(pool, car) == [other.emaid]
    assert emaids(pool, twenty) == [default.emaid]


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_what_a_car_gets_beside_an_expired_default_is_the_same_before_and_after_a_purge(
    pool: Pool, edition: str
) -> None:
    car = pool.car(edition)
    default, other = pool.publish(car), pool.publish(car, new_emaid("NLEXB"))
    pool.expire(default.emaid)
    before = emaids(pool, car)
    purge(pool, default)
    assert before == emaids(pool, car) == [other.emaid]
