"""Events of contracts over real sockets: who gets which, and no other party. Two servers share a database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from ccp.ids import EMAID, PCID
from ccp.server.storage.queries import revocation, webhooks
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from ccp.x509.certificates import Certificate
from ccp.x509.revocation_evidence import Evidence, RevocationStatus
from tests.attacks.provisioning_events import SECRET, send_event
from tests.background_rounds import wait_for_round, wait_until_loaded
from tests.cli.run import ccp_ok
from tests.server.events.receiver import Receiver, Sent, receiving, webhook
from tests.server.events.subscriptions import (
    REFRESH,
    SETTINGS,
    about,
    everything,
    second_server,
    settle,
    subscribed,
)
from tests.waiting import wait_until
from tests.world import AT, ISO2, Contract, Pool, new_emaid, start

CREATED, UPDATED, DELETED = (f"oem.contract.{what}" for what in ("created", "updated", "deleted"))
CONTESTED, EXPIRING, UNDELIVERABLE = "oem.vehicle.contested", "emsp.contract.expiring", "emsp.contract.undeliverable"
CREATED_SENT, UPDATED_SENT, DELETED_SENT = (
    f"emsp.contract.{what}.sent.to.oem" for what in ("created", "updated", "deleted")
)
DELIVERED, QUEUED, REJECTED = (
    f"emsp.contract.{what}" for what in ("delivered.to.oem", "queued.to.oem", "rejected.by.oem")
)
DAY = timedelta(days=1)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def pool(request: pytest.FixtureRequest, pkis: dict[str, PKI]) -> Iterator[Pool]:
    more: dict[str, Any] = {"pcp_webhook_secret": SECRET, "purge_interval": 0}
    if request.param == "postgresql":
        more["database"] = request.getfixturevalue("postgres").database()
    chosen = {name: pkis[name] for name in ("iso2", "iso20")}
    with start(chosen, refresh_interval=REFRESH, **SETTINGS, **more) as running:
        yield running


@pytest.fixture(scope="module")
def other_url(pool: Pool) -> Iterator[str]:
    with second_server(pool) as url:
        yield url


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def all_subscribed(pool: Pool, other_url: str, receiver: Receiver) -> Iterator[Receiver]:
    """Every party has subscribed to every event."""
    with subscribed(pool, receiver, everything()):
        wait_until_loaded("subscribers", servers=2)
        yield receiver


def counted(pool: Pool, receiver: Receiver, pcid: PCID) -> dict[tuple[str, str], int]:
    settle(pool)
    return dict(about(pcid, receiver))


def until_counted(pool: Pool, receiver: Receiver, pcid: PCID, expected: dict[tuple[str, str], int]) -> None:
    wait_until(lambda: dict(about(pcid, receiver)) == expected, 20, lambda: dict(about(pcid, receiver)))
    assert counted(pool, receiver, pcid) == expected


def evidence_of_revocation(pool: Pool, contract: Contract, edition: str = "iso2") -> None:
    issuer = pool.pki(edition).emsp_sub2.certificate.issuer_key_id
    number = Certificate.load(contract.certificate).serial_number
    evidence = Evidence(issuer, number, RevocationStatus.REVOKED, AT, AT + DAY, AT - DAY, "OCSP test")
    assert pool.change(revocation.store_evidence(evidence)) is True


# --- Who gets which event --------------------------------------------------------------------------------------------


def test_events_of_publication_reach_oem_and_emsp_only(pool: Pool, all_subscribed: Receiver) -> None:
    car = pool.car()
    contract = pool.publish(car)
    expected = {("oem", CREATED): 1, ("emsp", CREATED_SENT): 1}
    until_counted(pool, all_subscribed, car.pcid, expected)
    pool.publish(car, contract.emaid)
    expected |= {("oem", UPDATED): 1, ("emsp", UPDATED_SENT): 1}
    until_counted(pool, all_subscribed, car.pcid, expected)
    pool.ask(car)
    expected |= {("emsp", DELIVERED): 1}
    until_counted(pool, all_subscribed, car.pcid, expected)
    assert pool.emsp.delete(f"/signedcontractdata/{contract.emaid}").status_code == 200
    expected |= {("oem", DELETED): 1, ("emsp", DELETED_SENT): 1}
    until_counted(pool, all_subscribed, car.pcid, expected)


def test_event_of_a_queued_and_a_rejected_delivery_reaches_the_emsp_only(pool: Pool, all_subscribed: Receiver) -> None:
    car = pool.car()
    all_subscribed.says("/oem", 503, 409)
    pool.publish(car)
    until_counted(pool, all_subscribed, car.pcid, {("oem", CREATED): 2, ("emsp", QUEUED): 1, ("emsp", REJECTED): 1})


def test_event_of_a_moved_contract_reaches_both_oems(pool: Pool, all_subscribed: Receiver) -> None:
    car, other = pool.car(), pool.car(wmi="WXB")
    contract = pool.publish(car)
    pool.publish(other, contract.emaid)
    until_counted(
        pool, all_subscribed, car.pcid,
        {("oem", CREATED): 1, ("oem", DELETED): 1, ("emsp", CREATED_SENT): 1, ("emsp", DELETED_SENT): 1},
    )  # fmt: skip
    until_counted(pool, all_subscribed, other.pcid, {("other_oem", CREATED): 1, ("emsp", CREATED_SENT): 1})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mo.prov.cert.deleted", "emsp.prov.cert.deleted"),
        ("emsp.prov.cert.deleted", "emsp.prov.cert.deleted"),
        ("mo.prov.cert.updated", "emsp.prov.cert.updated"),
        ("mo.prov.cert.factory.reset", "emsp.prov.cert.factory.reset"),
        ("mo.prov.cert.updated.factory.reset", "emsp.prov.cert.factory.reset"),
        ("emsp.prov.cert.factory.reset", "emsp.prov.cert.factory.reset"),
        ("emsp.prov.cert.updated.factory.reset", "emsp.prov.cert.factory.reset"),
    ],
)
def test_provisioning_event_reaches_each_emsp_that_lost_a_contract(
    pool: Pool, all_subscribed: Receiver, name: str, expected: str
) -> None:
    """Two contracts of one provider, one of another; contracts of another vehicle stay."""
    car, untouched = pool.car(), pool.car()
    contracts = [pool.publish(car), pool.publish(car), pool.publish(car, new_emaid("NLEXB"))]
    pool.publish(untouched)
    settle(pool)
    all_subscribed.sent.clear()
    assert send_event(pool, name, car.pcid).status_code == 200
    until_counted(
        pool, all_subscribed, car.pcid,
        {
            ("oem", DELETED): 3, ("emsp", DELETED_SENT): 2, ("other_emsp", DELETED_SENT): 1,
            ("emsp", expected): 2, ("other_emsp", expected): 1,
        },
    )  # fmt: skip
    sent = [each for each in all_subscribed.sent if each.kind == expected]
    assert {each.event["payload"]["emaid"] for each in sent} == {contract.emaid for contract in contracts}
    assert {each.event["payload"]["pcid"] for each in sent} == {car.pcid}
    assert about(untouched.pcid, all_subscribed) == {}


@pytest.mark.parametrize(
    "name",
    [
        "mo.prov.cert.deleted",
        "mo.prov.cert.updated",
        "mo.prov.cert.factory.reset",
        "mo.prov.cert.updated.factory.reset",
    ],
)
def test_event_carries_the_name_that_the_subscriber_asked_for(
    pool: Pool, other_url: str, receiver: Receiver, name: str
) -> None:
    car = pool.car()
    pool.publish(car)
    with subscribed(pool, receiver, [name], ["emsp"]):
        assert send_event(pool, name, car.pcid).status_code == 200
        receiver.wait("/emsp", 1)
        settle(pool)
    assert [each.kind for each in receiver.received] == [name]


def test_provisioning_event_that_is_unknown_is_refused_and_changes_nothing(
    pool: Pool, all_subscribed: Receiver
) -> None:
    car = pool.car()
    contract = pool.publish(car)
    settle(pool)
    all_subscribed.sent.clear()
    for name in ("mo.prov.cert.renewed", "emsp.prov.cert.reset", "oem.prov.cert.deleted", "mo.prov.cert."):
        answer = send_event(pool, name, car.pcid)
        assert answer.status_code == 400
        assert "mo.prov.cert.factory.reset" in answer.json()["errorMessages"][0]
    settle(pool)
    assert pool.stored(contract.emaid) == 1
    assert all_subscribed.sent == []


# --- Contested vehicles ----------------------------------------------------------------------------------------------


def test_contest_reaches_the_oem_and_the_second_provider(pool: Pool, all_subscribed: Receiver) -> None:
    car = pool.car()
    pool.publish(car)
    second = pool.publish(car, new_emaid("NLEXB"))
    expected = {
        ("oem", CREATED): 2, ("emsp", CREATED_SENT): 1, ("other_emsp", CREATED_SENT): 1,
        ("oem", CONTESTED): 1, ("other_emsp", UNDELIVERABLE): 1,
    }  # fmt: skip
    until_counted(pool, all_subscribed, car.pcid, expected)
    pool.publish(car, second.emaid)  # Still contested: not sent again.
    expected |= {("oem", UPDATED): 1, ("other_emsp", UPDATED_SENT): 1}
    until_counted(pool, all_subscribed, car.pcid, expected)
    (contested,) = [each.event["payload"] for each in of(car, all_subscribed) if each.kind == CONTESTED]
    assert contested.items() >= {"emaid": second.emaid, "pcid": car.pcid, "contested": True}.items()
    (undeliverable,) = [each.event["payload"] for each in of(car, all_subscribed) if each.kind == UNDELIVERABLE]
    assert undeliverable.items() >= {"emaid": second.emaid, "pcid": car.pcid, "reason": "contested"}.items()


def test_contest_under_concurrent_publications_is_reported_once(
    pool: Pool, other_url: str, all_subscribed: Receiver
) -> None:
    for _ in range(4):
        car = pool.car()
        first = pool.publish(car)
        others = [pool.contract(car, new_emaid("NLEXB")) for _ in range(3)]
        put_concurrently(pool, other_url, [*others, *others, pool.contract(car, first.emaid)])
        found = counted(pool, all_subscribed, car.pcid)
        assert found["oem", CONTESTED] == 1
        assert found["other_emsp", UNDELIVERABLE] == 3
        assert ("emsp", UNDELIVERABLE) not in found


def of(car: Car, receiver: Receiver) -> list[Sent]:
    return [sent for sent in receiver.received if sent.event["payload"].get("pcid") == car.pcid]


def put_concurrently(pool: Pool, other_url: str, contracts: list[Contract]) -> None:
    """PUT by both servers at the same time."""
    token = {"Authorization": f"Bearer {pool.token('cps')}"}

    def put(number: int, contract: Contract) -> int:
        base = other_url if number % 2 else pool.settings.public_url
        with httpx.Client(timeout=20) as http:
            return http.put(f"{base}/opnc/v1/ccp/signedcontractdata", json=contract.body, headers=token).status_code

    with ThreadPoolExecutor(len(contracts)) as aside:
        assert set(aside.map(put, range(len(contracts)), contracts)) == {201}


# --- Undeliverable contracts -----------------------------------------------------------------------------------------


def reasons(car: Car, receiver: Receiver) -> list[tuple[str, str]]:
    return [
        (each.path[1:], each.event["payload"]["reason"]) for each in of(car, receiver) if each.kind == UNDELIVERABLE
    ]


def test_contract_that_is_revoked_is_reported_once_to_its_emsp(
    pool: Pool, other_url: str, all_subscribed: Receiver
) -> None:
    car = pool.car()
    contract = pool.publish(car)
    settle(pool)
    evidence_of_revocation(pool, contract)
    wait_until(lambda: bool(reasons(car, all_subscribed)))
    for _ in range(3):
        assert pool.post(car).status_code == 200  # The negative message.
    with second_server(pool):  # A restarted worker.
        wait_for_round("contract_checks", servers=3)
    settle(pool)
    assert reasons(car, all_subscribed) == [("emsp", "revoked")]
    renewed = pool.publish(car, contract.emaid)  # With another certificate.
    evidence_of_revocation(pool, renewed)
    wait_until(lambda: len(reasons(car, all_subscribed)) == 2)


def test_purge_reports_a_revoked_contract_before_it_removes_it(pool: Pool, all_subscribed: Receiver) -> None:
    car = pool.car("iso20")
    contract = pool.publish(car)
    settle(pool)
    evidence_of_revocation(pool, contract, "iso20")
    ccp_ok("purge", "--yes", env={"CCP_DATABASE": pool.settings.database})
    settle(pool)
    wait_until(lambda: ("emsp", DELETED_SENT) in about(car.pcid, all_subscribed))
    assert reasons(car, all_subscribed) == [("emsp", "revoked")]
    assert about(car.pcid, all_subscribed)["oem", DELETED] == 1


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_contract_that_is_stale_is_reported_once_until_it_is_published_again(
    pool: Pool, all_subscribed: Receiver, edition: str
) -> None:
    car = pool.car(edition)
    contract = pool.publish(car)
    settle(pool)
    for round in (1, 2):
        pool.sql("update contract set provisioning_key = ? where emaid = ?", "0" * 64, str(contract.emaid))
        for _ in range(3):
            assert pool.post(car).status_code == 200
        wait_until(lambda count=round: len(reasons(car, all_subscribed)) == count)  # type: ignore[misc]
        assert pool.post(car).status_code == 200
        wait_for_round("delivered_events", servers=2)
        settle(pool)
        assert reasons(car, all_subscribed) == [("emsp", "stale")] * round
        pool.publish(car, contract.emaid)
    pool.ask(car)
    wait_until(lambda: ("emsp", DELIVERED) in about(car.pcid, all_subscribed))
    assert len(reasons(car, all_subscribed)) == 2


# --- Expiring contracts ----------------------------------------------------------------------------------------------


def ends(pool: Pool, emaid: EMAID, left: timedelta) -> None:
    pool.sql(
        "update contract set valid_to = ? where emaid = ?", int((datetime.now(UTC) + left).timestamp()), str(emaid)
    )


def notices(emaid: EMAID, receiver: Receiver) -> list[tuple[str, int]]:
    return [
        (sent.path[1:], sent.event["payload"]["noticeDays"])
        for sent in receiver.received
        if sent.kind == EXPIRING and sent.event["payload"]["emaid"] == emaid
    ]


def test_contract_that_expires_is_reported_once_for_each_notice(pool: Pool, all_subscribed: Receiver) -> None:
    later, soon, others = (pool.publish(pool.car(), new_emaid(owner)) for owner in ("DEEXA", "DEEXA", "NLEXB"))
    ends(pool, later.emaid, 31 * DAY)
    ends(pool, soon.emaid, 5 * DAY)
    ends(pool, others.emaid, 20 * DAY)
    wait_until(lambda: len(notices(soon.emaid, all_subscribed) + notices(others.emaid, all_subscribed)) == 2)
    with second_server(pool):
        wait_for_round("contract_checks", servers=3)
    settle(pool)
    assert notices(soon.emaid, all_subscribed) == [("emsp", 7)], "the longer notice has passed"
    assert notices(others.emaid, all_subscribed) == [("other_emsp", 30)]
    assert notices(later.emaid, all_subscribed) == []
    (sent,) = [
        each
        for each in all_subscribed.sent
        if each.event["payload"].get("emaid") == soon.emaid and each.kind == EXPIRING
    ]
    end = datetime.fromisoformat(sent.event["payload"]["validTo"])
    assert abs(end - datetime.now(UTC) - 5 * DAY) < timedelta(minutes=2)
    assert sent.event["xsdMsgDefNamespace"] == ISO2
    pool.sql("update contract set valid_to = valid_to - 86400 * 14 where emaid = ?", str(others.emaid))
    wait_until(lambda: len(notices(others.emaid, all_subscribed)) == 2)
    assert notices(others.emaid, all_subscribed) == [("other_emsp", 30), ("other_emsp", 7)]


# --- Races -----------------------------------------------------------------------------------------------------------


def test_events_stay_consistent_under_concurrent_put_and_reset(
    pool: Pool, other_url: str, all_subscribed: Receiver
) -> None:
    """PUT, DELETE and factory resets by both servers: the events tell what happened, in order, once."""
    car = pool.car()
    contracts = [pool.contract(car, new_emaid(owner)) for owner in ("DEEXA", "DEEXA", "NLEXB")]
    cps, emsp = ({"Authorization": f"Bearer {pool.token(name)}"} for name in ("cps", "emsp"))

    def put(number: int) -> int:
        base = other_url if number % 2 else pool.settings.public_url
        body = contracts[number % 3].body
        with httpx.Client(timeout=30) as http:
            return http.put(f"{base}/opnc/v1/ccp/signedcontractdata", json=body, headers=cps).status_code

    def withdraw(number: int) -> int:
        with httpx.Client(timeout=30) as http:
            url = f"{other_url}/opnc/v1/ccp/signedcontractdata/{contracts[number % 2].emaid}"
            return http.delete(url, headers=emsp).status_code

    def reset(number: int) -> int:
        kind = ("mo.prov.cert.factory.reset", "mo.prov.cert.deleted")[number % 2]
        return send_event(pool, kind, car.pcid).status_code

    with ThreadPoolExecutor(8) as aside:
        work = [aside.submit(put, number) for number in range(18)]
        work += [aside.submit(reset, number) for number in range(4)]
        work += [aside.submit(withdraw, number) for number in range(4)]
        work += [aside.submit(put, number) for number in range(18)]
        answers = Counter(each.result() for each in work)
    assert answers.keys() <= {200, 201, 400, 404}, answers
    settle(pool)
    sent = of(car, all_subscribed)
    assert len({(each.path, each.event["eventId"]) for each in sent}) == len(sent), "each event once"
    for path in ("/oem", "/emsp", "/other_emsp"):
        times = [each.event["timestamp"] for each in sent if each.path == path]
        assert times == sorted(times), path
    assert {each.path for each in sent} <= {"/oem", "/emsp", "/other_emsp"}
    stored = {emaid for (emaid,) in pool.sql("select emaid from contract where pcid = ?", str(car.pcid))}
    for contract in contracts:
        mine = [each for each in sent if each.event["payload"]["emaid"] == contract.emaid]
        maker = [each.kind for each in mine if each.path == "/oem" and each.kind != CONTESTED]
        # Each life of the contract: created, then updates, then at most one removal.
        lives = "".join({CREATED: "c", UPDATED: "u", DELETED: "d"}[kind] for kind in maker).split("c")
        assert lives[0] == "" or not maker
        assert all(life.rstrip("d").strip("u") == "" and life.count("d") <= 1 for life in lives[1:]), lives
        ended = all(life.endswith("d") for life in lives[1:])
        assert (contract.emaid in stored) is not ended
        resets = [each for each in mine if ".prov.cert." in each.kind]
        assert len(resets) <= maker.count(DELETED)
        assert {each.path for each in resets} <= {"/other_emsp" if contract.emaid.startswith("NLEXB") else "/emsp"}
    removed_by_reset = pool.sql(
        "select count(*) from audit where action = 'vehicle.forgotten' and subject like ?", f"%{car.pcid}%"
    )
    assert sum(".prov.cert." in each.kind for each in sent) == removed_by_reset[0][0]


# --- What is not asked for costs nothing -----------------------------------------------------------------------------


def test_event_of_no_subscriber_is_not_kept(pool: Pool, other_url: str, receiver: Receiver) -> None:
    wait_until_loaded("subscribers", servers=2)  # Both servers have forgotten the webhooks of the tests before.
    car = pool.car()
    contract = pool.publish(car)
    ends(pool, contract.emaid, 5 * DAY)
    pool.sql("update contract set provisioning_key = ? where emaid = ?", "0" * 64, str(contract.emaid))
    pool.post(car)
    wait_for_round("contract_checks", "delivered_events", servers=2)
    rows = pool.sql("select expiring_days, undeliverable from contract where emaid = ?", str(contract.emaid))
    assert rows == [(None, None)]
    hook = webhook(receiver.url + "/late", "emsp", EXPIRING)
    pool.change(webhooks.put(hook))
    wait_until(lambda: len(receiver.asked("/late")) >= 1)
    pool.change(webhooks.remove(hook.id))
    assert contract.emaid in {each.event["payload"]["emaid"] for each in receiver.asked("/late")}
