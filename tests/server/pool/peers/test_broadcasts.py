"""Broadcasts: limits, the negative cache, the order of peers, and attribution of failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from ccp import verify
from ccp.errors import CCPError, NoContract, Unavailable
from ccp.ids import PCID, ProviderId
from ccp.server.domain.parties import PartyRole
from ccp.server.runtime.loop_budget import LoopBudget
from ccp.server.runtime.loop_lag import LoopLag
from ccp.server.storage.queries import peers
from ccp.server.storage.queries.peers import Peer
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.scripted_server import DROP, HANG, Reply, Scripted, error, json_reply, scripted
from tests.server.http.api.answers import sentences
from tests.server.http.metrics_reading import read_metrics, sample, total
from tests.server.pool.peers.answers import BASE, item_of, opnc
from tests.server.pool.peers.requests import ASK, PATH, deliver, to, until_known
from tests.waiting import wait_until
from tests.world import AT, SESSION, Pool, again, b64, party, start

NOT_ASKED = "Other pools were not asked, because too many such requests are under way."
NOTHING = "No contract is stored for the vehicle."
OTHER_CPO = party("other_cpo", PartyRole.CPO, operators="NLEXC")


@contextmanager
def beside(pkis: dict[str, PKI], *others: Scripted, **settings: Any) -> Iterator[Pool]:
    """A pool with a peer at each server: peer-0, peer-1, …"""
    options = {"pool_id": "pool-x", "peer_delivery_timeout": 3, **settings}
    with start(pkis, [OTHER_CPO], **options) as pool:
        for number, server in enumerate(others):
            pool.change(peers.add(Peer(f"peer-{number}", server.url, token="t"), AT))
        until_known(pool, f"peer-{len(others) - 1}")
        yield pool


@contextmanager
def servers(count: int) -> Iterator[list[Scripted]]:
    with ExitStack() as stack:
        yield [stack.enter_context(scripted()) for _ in range(count)]


def negative(car: Car, reason: CCPError = NoContract(NOTHING), reported: str | None = None) -> Reply:
    """The negative response of a pool that has nothing, or cannot answer now."""
    item = {
        "certificateInstallationRes": b64(verify.negative_response(car.namespace, SESSION, reason, AT)),
        "emaid": "ZZZZZ000000000",
        "pcid": car.pcid,
        "xsdMsgDefNamespace": car.namespace,
        "metaData": reported or str(reason),
    }
    return json_reply({"signedContractDataCollection": [item]})


def asked(server: Scripted) -> int:
    return len(server.asked(PATH))


# --- Limits ----------------------------------------------------------------------------------------------------------


def test_broadcast_beyond_the_partys_limit_is_answered_locally(
    pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccp.server.pool.broadcast_limits.IN_FLIGHT", (8, 2))
    arrived, released = threading.Semaphore(0), threading.Event()

    def wait(connection: object) -> None:
        arrived.release()
        released.wait(20)

    with scripted() as peer, beside(pkis, peer) as pool:
        peer.on(PATH, Reply(act=wait), Reply(act=wait), error(404))
        with ThreadPoolExecutor(2) as threads:
            under_way = [threads.submit(deliver, pool, pool.car()) for _ in range(2)]
            assert all(arrived.acquire(timeout=10) for _ in range(2))
            (item,) = deliver(pool, pool.car())
            assert item["metaData"] == f"{NOTHING} {NOT_ASKED}"
            refused = pool.post(pool.car(), headers={**ASK, "alwaysReturnEXI": "false"})
            assert sentences(refused, 404) == [NOTHING, NOT_ASKED]
            assert asked(peer) == 2
            # Another party's share is its own, and a car with a contract here needs no other pool.
            answer = pool.post(pool.car(), headers=ASK, caller="other_cpo")
            assert answer.json()["signedContractDataCollection"][0]["metaData"] == NOTHING
            assert asked(peer) == 3
            car = pool.car()
            contract = pool.publish(car)
            assert deliver(pool, car)[0]["emaid"] == contract.emaid
            released.set()
            for each in under_way:
                each.result()
        assert sample(read_metrics(pool.base_url), "ccp_broadcasts_total", outcome="limited") == 2
        deliver(pool, pool.car())
        assert asked(peer) == 4


def test_broadcast_beyond_the_partys_rate_is_answered_locally(pkis: dict[str, PKI]) -> None:
    with servers(3) as three:
        for server in three:
            server.on(PATH, error(404))
        with beside(pkis, *three, broadcast_rate=1) as pool:  # Three requests: enough for two seconds.
            assert deliver(pool, pool.car())[0]["metaData"] == NOTHING
            assert deliver(pool, pool.car())[0]["metaData"] == f"{NOTHING} {NOT_ASKED}"
            answer = pool.post(pool.car(), headers=ASK, caller="other_cpo")
            assert answer.json()["signedContractDataCollection"][0]["metaData"] == NOTHING
            assert [asked(server) for server in three] == [2, 2, 2]


def test_broadcast_connections_to_one_peer_are_limited(pkis: dict[str, PKI]) -> None:
    with scripted() as peer, beside(pkis, peer, peer_delivery_timeout=4) as pool:
        cars = [pool.car() for _ in range(12)]
        peer.on(PATH, Reply(**{**vars(error(404)), "delay": 0.15}))
        pool.client("cpo")  # Before the threads share it.
        with ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(lambda car: pool.post(car, headers=ASK), cars))
        reported = {answer.json()["signedContractDataCollection"][0]["metaData"] for answer in answers}
        assert reported == {NOTHING}
        assert asked(peer) == 12
        assert len({one.connection for one in peer.received}) <= 6


# --- What is remembered ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_broadcast_skips_a_peer_that_had_nothing(pkis: dict[str, PKI], edition: str) -> None:
    with scripted() as peer, scripted() as gone, beside(pkis, peer, gone) as pool:
        car = pool.car(edition)
        peer.on(PATH, negative(car))
        gone.on(PATH, error(404))
        for _ in range(3):
            assert deliver(pool, car)[0]["metaData"] == NOTHING
        assert (asked(peer), asked(gone)) == (1, 1)
        assert sample(read_metrics(pool.base_url), "ccp_broadcasts_total", outcome="remembered") == 2
        # Another car is another matter, and a request that is addressed to the peer is always sent.
        deliver(pool, pool.car(edition))
        assert (asked(peer), asked(gone)) == (2, 2)
        pool.post(car, headers=to("peer-0"))
        assert (asked(peer), asked(gone)) == (3, 2)


def test_negative_cache_distinguishes_roots_and_keys(pkis: dict[str, PKI]) -> None:
    """A contract under a root that the vehicle did not list before, or for its new key, may already be there."""
    with scripted() as peer, beside(pkis, peer) as pool:
        car = pool.car()
        peer.on(PATH, negative(car))
        roots = (*car.v2g_roots, pkis["iso20"].v2g_root.certificate)
        renewed = Car.from_credential(pkis["iso2"], again(pkis["iso2"], car), car.pcid)
        for each in (car, replace(car, v2g_roots=roots), renewed) * 2:
            assert deliver(pool, each)[0]["metaData"] == NOTHING
        assert asked(peer) == 3


def test_negative_cache_entry_expires(pkis: dict[str, PKI]) -> None:
    with scripted() as peer, beside(pkis, peer, peer_negative_ttl=0.5) as pool:
        car = pool.car()
        contract = pool.contract(car)
        peer.on(PATH, negative(car), opnc(contract))
        deliver(pool, car)
        deadline = time.monotonic() + 20
        while deliver(pool, car)[0]["emaid"] != contract.emaid:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert asked(peer) == 2


def test_negative_cache_ignores_failures_and_temporary_answers(pkis: dict[str, PKI]) -> None:
    with scripted() as peer, beside(pkis, peer, peer_delivery_timeout=1) as pool:
        car = pool.car()
        busy = negative(car, Unavailable("Not now."), "temporary: Not now.")
        proxied = Reply(404, b"<html>")
        replies = [error(500), error(503), error(429), busy, proxied, DROP, HANG, json_reply({}), error(401)]
        for reply in replies:
            peer.on(PATH, reply)
            before = asked(peer)
            deliver(pool, car)
            assert asked(peer) == before + 1
            peer.on(PATH, error(404))  # It is well for another car, so its circuit stays closed.
            deliver(pool, pool.car())
        peer.on(PATH, opnc(contract := pool.contract(car)))
        assert deliver(pool, car)[0]["emaid"] == contract.emaid


def test_broadcast_to_an_addressed_vehicle_forwards_a_temporary_failure(pkis: dict[str, PKI]) -> None:
    with scripted() as peer, beside(pkis, peer) as pool:
        car = pool.car()
        peer.on(PATH, negative(car, Unavailable("Not now."), "temporary: Not now."))
        (item,) = deliver(pool, car, to("peer-0"))
        assert item["metaData"] == "temporary: The pool peer-0 does not answer now; try again later."


# --- Order -----------------------------------------------------------------------------------------------------------


def test_broadcast_asks_a_peer_of_the_same_manufacturer_first(pkis: dict[str, PKI]) -> None:
    with servers(7) as seven, beside(pkis, *seven) as pool:
        first, second, third = pool.car(), pool.car(), pool.car(wmi="WXB")
        for server in seven:
            server.on(PATH, error(404))
        for car in (first, second, third):
            seven[4].on(PATH, opnc(contract := pool.contract(car)))
            before = [asked(server) for server in seven]
            assert deliver(pool, car)[0]["emaid"] == contract.emaid
            new = [asked(server) - count for server, count in zip(seven, before, strict=True)]
            assert new[4] == 1
            assert (sum(new) == 1) == (car is second)


def test_broadcast_next_wave_starts_while_the_first_hangs(pkis: dict[str, PKI]) -> None:
    with servers(9) as nine, beside(pkis, *nine, peer_delivery_timeout=4) as pool:
        cars = [pool.car() for _ in range(3)]
        for server in nine:
            server.on(PATH, HANG)
        for number, car in enumerate(cars):  # Whatever wave the peer is in.
            nine[number * 4].on(PATH, opnc(contract := pool.contract(car)), HANG)
            began = time.monotonic()
            assert deliver(pool, car)[0]["emaid"] == contract.emaid
            assert time.monotonic() - began < 3.5


def test_broadcast_registered_peer_wins_over_a_faster_one(pkis: dict[str, PKI]) -> None:
    with scripted() as likely, scripted() as registered, beside(pkis, likely) as pool:
        provider = frozenset({ProviderId.parse("DEEXA")})
        likely.on(PATH, opnc(pool.contract(first := pool.car())))
        deliver(pool, first)
        pool.change(peers.add(Peer("registered", registered.url, token="t", provider_ids=provider), AT))
        until_known(pool, "registered")
        car = pool.car()
        foreign, true = pool.contract(pool.car()), pool.contract(car)
        likely.on(PATH, opnc(foreign, pcid=car.pcid))
        registered.on(PATH, Reply(**{**vars(opnc(true)), "delay": 0.3}))
        assert deliver(pool, car)[0]["emaid"] == true.emaid


# --- Connections and circuits ----------------------------------------------------------------------------------------


def test_broadcast_late_answer_keeps_its_connection(pkis: dict[str, PKI]) -> None:
    with scripted() as fast, scripted() as slow, beside(pkis, fast, slow) as pool:
        for wmi in ("WEX", "WXB", "WXC"):  # Else the one that had something for the maker is asked alone.
            car = pool.car(wmi=wmi)
            fast.on(PATH, opnc(pool.contract(car)))
            slow.on(PATH, Reply(**{**vars(negative(car)), "delay": 0.3}))
            deliver(pool, car)
            wait_until(lambda: asked(slow) == asked(fast), 10)
            count = asked(slow)
            labels = {"peer": "peer-1", "outcome": "nothing"}
            wait_until(lambda: total(read_metrics(pool.base_url), "ccp_peer_requests_total", **labels) == count)  # noqa: B023
        assert len({one.connection for one in slow.asked(PATH)}) == 1
        found = read_metrics(pool.base_url)
        assert total(found, "ccp_peer_requests_total", outcome="overtaken") == 0
        assert sample(found, "ccp_peer_circuit_open", peer="peer-1") == 0


def test_circuit_stays_closed_while_the_event_loop_is_late(
    pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = [True]
    monkeypatch.setattr(LoopLag, "total", property(lambda self: time.monotonic() if late[0] else 0.0))
    path = "/contractData/pcid/WEX0TEST000000001"
    with (
        scripted() as peer,
        beside(pkis, peer, peer_delivery_timeout=0.2, peer_request_timeout=0.2, peer_negative_ttl=0) as pool,
    ):
        peer.on(PATH, HANG)
        peer.on(BASE + path, HANG)
        for _ in range(5):
            deliver(pool, pool.car())
            pool.oem.get(path, headers=to("peer-0"))
        assert total(read_metrics(pool.base_url), "ccp_peer_requests_total", outcome="timed_out") == 10
        assert sample(read_metrics(pool.base_url), "ccp_peer_circuit_open", peer="peer-0") == 0
        late[0] = False
        for _ in range(20):
            deliver(pool, pool.car())
        assert asked(peer) < 20
        assert sample(read_metrics(pool.base_url), "ccp_peer_circuit_open", peer="peer-0") == 1


def test_peer_answer_verification_yields_to_the_event_loop(
    pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch
) -> None:
    costs: list[int] = []
    spend = LoopBudget.spend

    async def noted(self: LoopBudget, cost: int) -> float:
        costs.append(cost)
        return await spend(self, cost)

    with scripted() as peer, beside(pkis, peer) as pool:
        car = pool.car()
        stranger = Car.from_credential(pool.pki("stranger"), car.provisioning, PCID.parse(car.pcid))
        items = [item_of(pool.contract(stranger, signer="stranger")) for _ in range(20)]
        peer.on(PATH, json_reply({"signedContractDataCollection": items}))
        monkeypatch.setattr(LoopBudget, "spend", noted)
        deliver(pool, car)
        assert len([cost for cost in costs if cost >= 1_500]) == 16  # As many as are looked at.
