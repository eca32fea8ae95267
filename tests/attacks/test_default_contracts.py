"""Default contracts: squatting on a vehicle, and conditions under which a vehicle gets no contract."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from structlog.testing import CapturingLogger

from ccp.errors import ConfigurationError
from ccp.ids import EMAID
from ccp.server.app import build_services
from ccp.server.settings import Settings
from ccp.server.storage.queries import purging
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.scripted_server import CLOSE, Reply, json_reply, scripted
from tests.server.events.receiver import Receiver, receiving
from tests.server.external.examples import chain_body
from tests.server.http.api.answers import sentences
from tests.world import AT, Contract, Pool, new_emaid, start


def emaids(pool: Pool, car: Car) -> list[str]:
    return [item["emaid"] for item in pool.ask(car)]


def purge(pool: Pool, contract: Contract) -> None:
    """Purge an expired contract, as the scheduled task does."""
    now = datetime.now(UTC)
    assert pool.change(purging.purge(contract.emaid, now, now)) is not None


# --- A default that cannot be delivered ------------------------------------------------------------------------------


def test_default_of_the_other_edition_does_not_block_delivery(pool: Pool) -> None:
    """A vehicle with both editions has one PCID; its default is signed for ISO 15118-20 only."""
    car = pool.car("iso2")
    twenty = Car.generate(pool.pki("iso20"), car.pcid, AT)
    default, other = pool.publish(twenty), pool.publish(car)
    assert pool.listed(twenty)[0]["defaultContract"] is True
    assert emaids(pool, car) == [other.emaid]
    assert emaids(pool, twenty) == [default.emaid]


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_default_that_expired_has_no_effect_before_or_after_a_purge(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    default, other = pool.publish(car), pool.publish(car, new_emaid("NLEXB"))
    pool.expire(default.emaid)
    before = emaids(pool, car)
    purge(pool, default)
    assert before == emaids(pool, car) == [other.emaid]


# --- Who publishes first ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def around(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool that sends events."""
    with start(pkis, event_dispatch=True, event_allow_http=True, egress_allow_networks=("127.0.0.0/8",)) as pool:
        yield pool


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def squatter() -> EMAID:
    """A contract of an eMSP that knows only the PCID of a vehicle."""
    return new_emaid("NLEXB")


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_default_survives_renewal_by_delete_and_put(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    mine = pool.publish(car)
    pool.publish(car, squatter())
    assert pool.emsp.delete(f"/signedcontractdata/{mine.emaid}").status_code == 200
    pool.publish(car, squatter())
    renewed = pool.publish(car)
    assert emaids(pool, car)[0] == renewed.emaid


def test_default_is_the_next_publication_of_its_provider(pool: Pool) -> None:
    car = pool.car()
    old, _, new = pool.publish(car), pool.publish(car, squatter()), pool.publish(car)
    assert pool.emsp.delete(f"/signedcontractdata/{old.emaid}").status_code == 200
    assert [item["defaultContract"] for item in pool.listed(car)] == [False, False]
    assert pool.cps.put("/signedcontractdata", json=new.body).status_code == 201
    assert emaids(pool, car) == [new.emaid]


def test_default_of_a_squatter_ends_unless_the_oem_chose_it(pool: Pool) -> None:
    car = pool.car()
    mine = pool.publish(car)
    assert pool.emsp.delete(f"/signedcontractdata/{mine.emaid}").status_code == 200
    other = pool.publish(car, squatter())
    assert emaids(pool, car) == [other.emaid]
    renewed = pool.publish(car)
    assert emaids(pool, car) == [renewed.emaid]
    assert pool.oem.post(f"/signedcontractdata/{other.emaid}/{car.pcid}/setdefault").status_code == 200
    assert pool.emsp.delete(f"/signedcontractdata/{renewed.emaid}").status_code == 200
    pool.publish(car)
    assert emaids(pool, car) == [other.emaid]


def test_vehicle_that_is_contested_causes_metric_log_and_event(
    around: Pool, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CapturingLogger()
    monkeypatch.setattr("ccp.server.pool.publication._log", log)
    headers = {"Authorization": f"Bearer {around.token('oem')}"}
    hook = {"url": receiver.url + "/oem", "enabledEvents": ["oem.contract.created", "oem.contract.updated"]}
    assert around.http.post("/opnc/v1/event/endpoints", headers=headers, json=hook).status_code == 201
    before = counted(around)
    car = around.car()
    first, second = around.publish(car, squatter()), around.publish(car)
    reported = {each.event["payload"]["emaid"]: each.event["payload"] for each in receiver.wait("/oem", 2)}
    assert "contested" not in reported[first.emaid]
    assert reported[second.emaid]["contested"] is True
    assert counted(around) == before + 1
    (call,) = log.calls
    assert (call.method_name, *call.args) == ("warning", "vehicle contested")
    sentence = {name: call.kwargs[name] for name in ("publisher", "default_provider", "other_providers", "wmi")}
    assert sentence == {
        "publisher": "DEEXA", "default_provider": "NLEXB", "other_providers": ["DEEXA"], "wmi": "WEX",
    }  # fmt: skip
    # The maker's choice ends it: later publications are not contested.
    assert around.oem.post(f"/signedcontractdata/{second.emaid}/{car.pcid}/setdefault").status_code == 200
    third = around.publish(car, squatter())
    (last,) = [each for each in receiver.wait("/oem", 3) if each.event["payload"]["emaid"] == third.emaid]
    assert "contested" not in last.event["payload"]
    assert counted(around) == before + 1


def counted(pool: Pool) -> float:
    text = pool.http.get("/metrics").text
    return sum(float(line.split()[1]) for line in text.splitlines() if line.startswith("ccp_contested_vehicles_total"))


def test_undeliverable_reason_does_not_name_the_other_provider(pool: Pool) -> None:
    car = pool.car()
    default = pool.publish(car, squatter())
    mine = pool.publish(car)
    (item,) = pool.emsp.get(f"/contractData/emaid/{mine.emaid}").json()["contractDataCollection"]
    assert item["undeliverable"] == (
        "The contract is not the vehicle's default contract, and an ISO 15118-2 vehicle gets no other; "
        "the vehicle's manufacturer chooses it."
    )
    assert "NLEXB" not in str(item)
    assert str(default.emaid) not in str(item)
    (item,) = pool.client("other_emsp").get(f"/contractData/emaid/{default.emaid}").json()["contractDataCollection"]
    assert "undeliverable" not in item
    # What the car gets for want of a deliverable default is deliverable.
    pool.expire(default.emaid)
    (item,) = pool.emsp.get(f"/contractData/emaid/{mine.emaid}").json()["contractDataCollection"]
    assert "undeliverable" not in item
    assert emaids(pool, car) == [mine.emaid]


def test_automatic_default_none_leaves_the_choice_to_the_oem(pkis: dict[str, PKI]) -> None:
    with start(pkis, automatic_default="none") as pool:
        car = pool.car()
        first, second = pool.publish(car, squatter()), pool.publish(car)
        assert [item["defaultContract"] for item in pool.listed(car)] == [False, False]
        assert pool.oem.post(f"/signedcontractdata/{second.emaid}/{car.pcid}/setdefault").status_code == 200
        assert pool.emsp.delete(f"/signedcontractdata/{second.emaid}").status_code == 200
        renewed = pool.publish(car)
        assert emaids(pool, car) == [renewed.emaid]
        assert first.emaid != renewed.emaid


# --- How many --------------------------------------------------------------------------------------------------------


def test_contract_limit_does_not_block_the_default_provider(pool: Pool) -> None:
    car = pool.car()
    mine = pool.publish(car)
    providers = ["NLEXB", "NLEXC", "NLEXD", "NLEXE", "NLEXF"]
    others = [pool.publish(car, new_emaid(provider)) for provider in providers for _ in range(3)]
    refused = pool.cps.put("/signedcontractdata", json=pool.contract(car, new_emaid("NLEXG")).body)
    assert sentences(refused, 400) == ["The vehicle has as many contracts as this pool keeps for one vehicle."]
    assert pool.emsp.delete(f"/signedcontractdata/{mine.emaid}").status_code == 200
    pool.publish(car, new_emaid("NLEXG"))
    renewed = pool.publish(car)
    assert emaids(pool, car) == [renewed.emaid]
    # A replacement is no growth, and another provider cannot come in by moving a contract here.
    pool.publish(car, others[0].emaid)
    elsewhere = pool.publish(pool.car(), new_emaid("NLEXH"))
    moving = pool.cps.put("/signedcontractdata", json=pool.contract(car, elsewhere.emaid).body)
    assert moving.status_code == 400
    assert pool.stored(elsewhere.emaid) == 1


def test_contract_limit_per_provider_is_four(pool: Pool) -> None:
    car = pool.car()
    mine = [pool.publish(car) for _ in range(4)]
    refused = pool.cps.put("/signedcontractdata", json=pool.contract(car).body)
    assert sentences(refused, 400) == ["The vehicle has 4 contracts of this provider already; delete one first."]
    pool.publish(pool.car(), mine[3].emaid)  # It moves out.
    pool.publish(car)


# --- Vehicles that are not known -------------------------------------------------------------------------------------


def test_publication_requires_a_vehicle_known_to_the_pcp(pkis: dict[str, PKI]) -> None:
    with scripted() as pcp, start(pkis, pcp_url=pcp.url) as pool:
        known, unknown = pool.car(), pool.car()
        pcp.on(f"/provisioningcertificates/{known.pcid}", json_reply(chain_body(known.provisioning)))
        pool.publish(known)
        for status in (404, 410):
            pcp.on("*", Reply(status))
            answer = pool.cps.put("/signedcontractdata", json=pool.contract(unknown).body)
            assert sentences(answer, 400) == ["pcid : is not known to the Provisioning Certificate Pool"]
        for reply in (Reply(403), Reply(500), Reply(500), CLOSE, CLOSE):  # From the fourth on it is not asked.
            pcp.on("*", reply)
            answer = pool.cps.put("/signedcontractdata", json=pool.contract(unknown).body)
            assert sentences(answer, 503) == [
                "The Provisioning Certificate Pool cannot be asked for the vehicle now; publish again later."
            ]
            assert int(answer.headers["Retry-After"]) > 0
        assert pool.sql("select pcid from contract") == [(str(known.pcid),)]
    with scripted() as pcp, start(pkis, pcp_url=pcp.url, require_known_vehicle=False) as pool:
        pcp.on("*", Reply(404))
        pool.publish(pool.car())


def test_require_known_vehicle_without_a_pcp_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="require_known_vehicle needs pcp_url"):
        build_services(Settings(require_known_vehicle=True))
