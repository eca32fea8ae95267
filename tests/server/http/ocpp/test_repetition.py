"""An ISO 15118-20 car with several contracts repeats its request, and gets one contract after the other."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest

from ccp import exi
from ccp.exi import iso20
from ccp.ids import EMAID
from ccp.server.sandbox.local_pool import loopback, running
from ccp.server.storage.queries import handed_out
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.server.http.ocpp.payloads import ask, installed, payload, post, remaining_in
from tests.world import AT, SESSION, Pool, again, new_emaid, start


@contextmanager
def another_machine(pool: Pool) -> Iterator[Pool]:
    """A second server on the same database."""
    with loopback() as (listening, base_url):
        settings = pool.settings.model_copy(update={"base_url": base_url})
        with running(settings, listening), httpx.Client(base_url=base_url, timeout=10) as http:
            other = Pool(base_url, settings, pool.world, pool.database, http)
            yield other
            other.close()


def with_contracts(pool: Pool, count: int) -> tuple[Car, list[EMAID]]:
    car = pool.car("iso20")
    return car, [pool.publish(car).emaid for _ in range(count)]


def remembered(pool: Pool, car: Car) -> list[tuple[Any, ...]]:
    return pool.sql("select client_id, contracts from handed_out where pcid = ? order by client_id", str(car.pcid))


def test_repetition_gets_one_contract_after_the_other_and_then_the_first_again(pool: Pool) -> None:
    car, emaids = with_contracts(pool, 3)
    body = payload(car)
    answers = [ask(pool, body, "2.1") for _ in range(4)]
    assert [installed(answer, car) for answer in answers] == [*emaids, emaids[0]]
    assert [answer["remainingContracts"] for answer in answers] == [2, 1, 0, 2]
    assert [remaining_in(answer, car) for answer in answers] == [2, 1, 0, 2]


def test_repetition_works_for_a_station_of_the_older_version(pool: Pool) -> None:
    car, emaids = with_contracts(pool, 2)
    body = payload(car)
    answers = [ask(pool, body, "2.0.1") for _ in range(2)]
    assert [installed(answer, car) for answer in answers] == emaids
    assert [remaining_in(answer, car) for answer in answers] == [1, 0]


def test_repetition_ends_at_what_the_car_takes(pool: Pool) -> None:
    car, emaids = with_contracts(pool, 3)
    body = payload(car, car.request(SESSION, AT, max_chains=2))
    answers = [ask(pool, body, "2.1") for _ in range(2)]
    assert [(installed(answer, car), answer["remainingContracts"]) for answer in answers] == [
        (emaids[0], 1),
        (emaids[1], 0),
    ]


def test_repetition_leaves_out_what_the_station_does_not_take(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    car, emaids = with_contracts(pool, 3)
    long = emaids[0]
    monkeypatch.setattr("ccp.server.pool.turns._characters", lambda c, *_: 7504 if c.emaid == long else 4000)
    answers = [ask(pool, payload(car), "2.0.1") for _ in range(2)]
    assert [installed(answer, car) for answer in answers] == emaids[1:]
    assert [remaining_in(answer, car) for answer in answers] == [1, 0]


def test_repetition_is_recognised_with_a_new_time_and_a_new_signature(pool: Pool) -> None:
    """Some cars write the current time, or sign again."""
    car, emaids = with_contracts(pool, 3)
    first = car.request(SESSION, AT)
    message = exi.decode(first)
    assert isinstance(message, iso20.CertificateInstallationReq)
    later = exi.encode(message._replace(Header=message.Header._replace(TimeStamp=message.Header.TimeStamp + 2)))
    found = [installed(ask(pool, payload(car, each), "2.1"), car) for each in (first, later, car.request(SESSION, AT))]
    assert found == emaids


def test_repetition_with_another_session_is_another_request(pool: Pool) -> None:
    car, emaids = with_contracts(pool, 2)
    assert installed(ask(pool, payload(car), "2.1"), car) == emaids[0]
    other = bytes.fromhex("aabbccdd00112233")
    assert installed(ask(pool, payload(car, session_id=other), "2.1"), car, other) == emaids[0]
    assert installed(ask(pool, payload(car), "2.1"), car) == emaids[1]


def test_repetition_of_the_same_message_gets_a_lost_answer_again(pool: Pool) -> None:
    """The key tells the back end's repetition of an HTTP request from the car's repetition."""
    car, emaids = with_contracts(pool, 3)
    body = payload(car)

    def asked(key: str) -> tuple[str, int]:
        answer = ask(pool, body, "2.1", headers={"Idempotency-Key": key})
        return installed(answer, car), answer["remainingContracts"]

    assert [asked("1"), asked("1"), asked("2"), asked("2"), asked("3")] == [
        (emaids[0], 2),
        (emaids[0], 2),
        (emaids[1], 1),
        (emaids[1], 1),
        (emaids[2], 0),
    ]
    assert post(pool, body, headers={"Idempotency-Key": "x" * 256}).status_code == 400


def test_repetition_by_two_parties_does_not_take_each_others_turns(pool: Pool) -> None:
    """A party that replays a car's request costs no other party's car a contract."""
    car, emaids = with_contracts(pool, 2)
    body = payload(car)
    assert installed(ask(pool, body, "2.1", caller="everything"), car) == emaids[0]
    assert installed(ask(pool, body, "2.1"), car) == emaids[0]
    assert installed(ask(pool, body, "2.1"), car) == emaids[1]


def test_repetition_of_an_unverified_request_takes_no_turn(pool: Pool) -> None:
    car, emaids = with_contracts(pool, 2)
    message, other = (exi.decode(each.request(SESSION, AT)) for each in (car, pool.car("iso20")))
    assert isinstance(message, iso20.CertificateInstallationReq)
    assert isinstance(other, iso20.CertificateInstallationReq)
    forged = exi.encode(message._replace(Header=other.Header))
    assert ask(pool, payload(car, forged), "2.1")["status"] == "Failed"
    assert remembered(pool, car) == []
    assert installed(ask(pool, payload(car), "2.1"), car) == emaids[0]


# --- Changes between two requests ------------------------------------------------------------------------------------


def test_contracts_may_be_withdrawn_and_added_between_two_requests(pool: Pool) -> None:
    car, emaids = with_contracts(pool, 3)
    body = payload(car, car.request(SESSION, AT, max_chains=5))
    assert installed(ask(pool, body, "2.1"), car) == emaids[0]
    assert pool.emsp.delete(f"/signedcontractdata/{emaids[1]}").status_code == 200
    added = pool.publish(car).emaid
    answers = [ask(pool, body, "2.1") for _ in range(2)]
    assert [installed(answer, car) for answer in answers] == [emaids[2], added]
    assert [answer["remainingContracts"] for answer in answers] == [1, 0]


def test_contract_that_was_handed_out_may_be_withdrawn(pool: Pool) -> None:
    car, emaids = with_contracts(pool, 3)
    body = payload(car)
    assert installed(ask(pool, body, "2.1"), car) == emaids[0]
    assert pool.emsp.delete(f"/signedcontractdata/{emaids[0]}").status_code == 200
    answers = [ask(pool, body, "2.1") for _ in range(2)]
    assert [(installed(answer, car), answer["remainingContracts"]) for answer in answers] == [
        (emaids[1], 1),
        (emaids[2], 0),
    ]


def test_contract_that_is_replaced_is_not_handed_out_twice(pool: Pool) -> None:
    car, emaids = with_contracts(pool, 2)
    body = payload(car)
    assert installed(ask(pool, body, "2.1"), car) == emaids[0]
    pool.publish(car, emaids[0])
    assert installed(ask(pool, body, "2.1"), car) == emaids[1]


def test_default_may_change_between_two_requests(pool: Pool) -> None:
    car, emaids = with_contracts(pool, 3)
    body = payload(car)
    assert installed(ask(pool, body, "2.1"), car) == emaids[0]
    assert pool.oem.post(f"/signedcontractdata/{emaids[2]}/{car.pcid}/setdefault").status_code == 200
    answers = [ask(pool, body, "2.1") for _ in range(2)]
    assert [(installed(answer, car), answer["remainingContracts"]) for answer in answers] == [
        (emaids[2], 1),
        (emaids[1], 0),
    ]


def test_car_with_a_new_key_begins_with_the_first_contract(pool: Pool) -> None:
    """After a factory reset the same session id does not continue the round of the old key."""
    car, emaids = with_contracts(pool, 2)
    assert installed(ask(pool, payload(car), "2.1"), car) == emaids[0]
    for emaid in emaids:
        assert pool.emsp.delete(f"/signedcontractdata/{emaid}").status_code == 200
    reset = Car.from_credential(pool.pki("iso20"), again(pool.pki("iso20"), car), car.pcid)
    fresh = [pool.publish(reset, emaid).emaid for emaid in emaids]
    found = [ask(pool, payload(reset), "2.1") for _ in range(2)]
    assert [installed(answer, reset) for answer in found] == fresh


# --- Several workers and machines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [False, True])
def test_requests_at_one_instant_get_different_contracts_on_two_machines(pool: Pool, key: bool) -> None:
    car, emaids = with_contracts(pool, 4)
    body = payload(car, car.request(SESSION, AT, max_chains=8))
    with another_machine(pool) as other:
        for _ in range(5):
            barrier = threading.Barrier(4)

            def asked(number: int, barrier: threading.Barrier = barrier) -> tuple[str, int]:
                barrier.wait(10)
                headers = {"Idempotency-Key": f"{time.monotonic_ns()}-{number}"} if key else None
                place = pool if number % 2 else other
                answer = post(place, body, headers=headers, ocppVersion="2.1").json()
                return installed(answer, car), answer["remainingContracts"]

            for place in (pool, other):
                place.token("cpo")
            with ThreadPoolExecutor(4) as threads:
                found = list(threads.map(asked, range(4)))
            assert sorted(emaid for emaid, _ in found) == sorted(emaids)
            assert sorted(remaining for _, remaining in found) == [0, 1, 2, 3]


def test_repetition_of_the_same_message_at_one_instant_gets_one_contract(pool: Pool) -> None:
    """A back end that does not wait for the response to its first attempt."""
    car, emaids = with_contracts(pool, 3)
    body = payload(car)
    with another_machine(pool) as other, ThreadPoolExecutor(4) as threads:
        for place in (pool, other):
            place.token("cpo")
        headers = {"Idempotency-Key": "one message"}
        found = list(
            threads.map(
                lambda place: installed(post(place, body, headers=headers, ocppVersion="2.1").json(), car),
                [pool, other, pool, other],
            )
        )
        assert Counter(found) == {emaids[0]: 4}
        assert installed(ask(other, body, "2.1"), car) == emaids[1]


# --- What is kept, and for how long ----------------------------------------------------------------------------------


def test_cars_with_one_contract_and_iso2_cars_need_no_memory(pkis: dict[str, PKI]) -> None:
    with start(pkis) as pool:
        pool.sql("alter table handed_out rename to elsewhere")
        for edition, count in (("iso2", 2), ("iso20", 1)):
            car = pool.car(edition)
            emaids = [pool.publish(car).emaid for _ in range(count)]
            assert installed(ask(pool, payload(car)), car) == emaids[0]
        car, emaids = with_contracts(pool, 2)
        assert installed(ask(pool, payload(car, car.request(SESSION, AT, max_chains=1))), car) == emaids[0]
        answer = ask(pool, payload(car))
        assert answer["statusInfo"]["reasonCode"] == "Unavailable"
        # OPNC and OPCP give all at once, or one.
        assert len(pool.ask(car)) == 2


def test_repetition_memory_expires(pool: Pool) -> None:
    car, emaids = with_contracts(pool, 3)
    body = payload(car)
    assert installed(ask(pool, body, "2.1"), car) == emaids[0]
    pool.sql("update handed_out set expires_at = expires_at - 599000000 where pcid = ?", str(car.pcid))
    assert installed(ask(pool, body, "2.1"), car) == emaids[1]
    pool.sql("update handed_out set expires_at = expires_at - 601000000 where pcid = ?", str(car.pcid))
    assert installed(ask(pool, body, "2.1"), car) == emaids[0]


def test_purge_removes_what_has_expired(pool: Pool) -> None:
    cars = [with_contracts(pool, 2)[0] for _ in range(2)]
    for car in cars:
        ask(pool, payload(car), "2.1")
    pool.sql("update handed_out set expires_at = 1 where pcid = ?", str(cars[0].pcid))
    assert pool.change(handed_out.remove_expired(AT)) >= 1
    assert [len(remembered(pool, car)) for car in cars] == [0, 1]


def test_purge_works_in_portions(pool: Pool) -> None:
    pool.change(handed_out.remove_expired(AT))
    long_ago = AT - timedelta(days=2)
    for number in range(5):
        query = handed_out.take_turn(
            *(pool.car("iso20").pcid, "gone", str(number), [new_emaid()], 1),
            **{"key": None, "now": long_ago, "lifetime": timedelta(seconds=1)},
        )
        pool.change(query)
    assert [pool.change(handed_out.remove_expired(AT, limit=2)) for _ in range(3)] == [2, 2, 1]


def test_repetition_memory_of_a_party_is_bounded_and_its_oldest_goes(pool: Pool) -> None:
    car, emaids = with_contracts(pool, 2)
    assert installed(ask(pool, payload(car), "2.1"), car) == emaids[0]

    def take(client_id: str, number: int) -> None:
        query = handed_out.take_turn(
            *(car.pcid, client_id, f"request {number}", emaids, 2),
            **{"key": None, "now": AT + timedelta(seconds=number), "lifetime": timedelta(hours=1), "max_rows": 3},
        )
        pool.change(query)

    for number in range(6):
        take("greedy", number)
    rows = pool.sql("select request from handed_out where client_id = 'greedy' order by request")
    assert [row[0] for row in rows] == ["request 3", "request 4", "request 5"]
    assert installed(ask(pool, payload(car), "2.1"), car) == emaids[1], "another party's rows stay"


@pytest.mark.parametrize("by", ["emaid", "pcid"])
def test_erasure_removes_what_is_remembered(pool: Pool, by: str) -> None:
    car, emaids = with_contracts(pool, 2)
    other, _ = with_contracts(pool, 2)
    for each in (car, other):
        ask(pool, payload(each), "2.1")
    named = emaids[0] if by == "emaid" else car.pcid
    assert pool.change(handed_out.erase(named)) == 1
    assert (remembered(pool, car), len(remembered(pool, other))) == ([], 1)


def test_repetition_goes_on_where_it_was_after_a_restart(pkis: dict[str, PKI]) -> None:
    with start(pkis) as pool:
        car, emaids = with_contracts(pool, 2)
        body = payload(car)
        assert installed(ask(pool, body, "2.1"), car) == emaids[0]
        with another_machine(pool) as later:
            assert installed(ask(later, body, "2.1"), car) == emaids[1]
