"""Partners that flood a peer, and malicious peers: vehicles still get their contracts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from ccp.client.untrusted_text import plain, sentences
from ccp.errors import Unavailable
from ccp.ids import ProviderId
from ccp.server.domain.parties import PartyRole
from ccp.server.pool import peer_limits
from ccp.server.pool.peer_limits import Circuits, Shares
from ccp.server.storage.queries import peers
from ccp.server.storage.queries.peers import Peer
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.scripted_server import Reply, Scripted, error, json_reply, scripted
from tests.server.http.api.answers import sentences as sentences_of
from tests.server.http.metrics_reading import read_metrics, sample
from tests.server.pool.peers.answers import BASE, item_of, opcp, opnc
from tests.server.pool.peers.requests import ASK, PATH, deliver, to, until_known
from tests.waiting import wait_until
from tests.world import AT, SESSION, Contract, Pool, party, response_bytes, start


def later(seconds: float, answer: Reply) -> Reply:
    """The same reply, later."""
    return replace(answer, delay=seconds)


# --- Shares ----------------------------------------------------------------------------------------------------------

FAR = [party("far_oem", PartyRole.OEM, wmis="WFX"), party("other_far_oem", PartyRole.OEM, wmis="WFY")]


def test_peer_that_is_slow_is_not_blocked_for_others_by_the_flood_of_one_partner(pkis: dict[str, PKI]) -> None:
    with (
        scripted() as peer,
        start(pkis, FAR, pool_id="pool-x", peer_delivery_timeout=4, peer_request_timeout=60) as pool,
    ):
        pool.change(peers.add(Peer("slow", peer.url, token="t"), AT))
        until_known(pool, "slow")
        flooded, quiet = f"{BASE}/contractData/pcid/WFX0TEST000000001", f"{BASE}/contractData/pcid/WFY0TEST000000001"
        released = threading.Event()
        peer.on(flooded, Reply(act=lambda connection: released.wait(60)))  # And then no answer.
        peer.on(quiet, error(404, "Nothing."))
        tokens = {name: {"Authorization": f"Bearer {pool.token(name)}"} for name in ("far_oem", "other_far_oem")}

        def flood(_: int) -> int:
            headers = {**tokens["far_oem"], **to("slow")}
            return httpx.get(pool.base_url + flooded, headers=headers, timeout=60).status_code

        def ask_quietly() -> None:
            headers = {**tokens["other_far_oem"], **to("slow")}
            answer = httpx.get(pool.base_url + quiet, headers=headers, timeout=20)
            assert sentences_of(answer, 404) == ["Nothing."]

        def ask_for_car() -> None:
            car = pool.car()
            contract = pool.contract(car)
            peer.on(PATH, later(0.3, opnc(contract)))
            for headers in (ASK, to("slow")):
                (item,) = deliver(pool, car, headers)
                assert item["emaid"] == contract.emaid

        with ThreadPoolExecutor(150) as threads:
            flooding = [threads.submit(flood, number) for number in range(150)]
            wait_until(lambda: sum(one.done() for one in flooding) == 150 - 16, 60)
            # 16 are under way for as long as the peer likes; what was beyond the caller's share did not reach it.
            assert len(peer.asked(flooded)) == 16
            ask_for_car()
            ask_quietly()
            released.set()
            assert {one.result() for one in flooding} == {503}
        # Its requests fail: the circuit opens for this caller and for no other. Those of the flood may not count, since
        # the event loop was late.
        headers, times = {**tokens["far_oem"], **to("slow")}, 0
        while "The pool slow did not answer." in httpx.get(pool.base_url + flooded, headers=headers, timeout=20).text:
            times += 1
            assert times < 20
        answer = httpx.get(pool.base_url + flooded, headers=headers, timeout=20)
        assert sentences_of(answer, 503) == ["The pool slow has not answered lately; try again later."]
        assert int(answer.headers["retry-after"]) >= 1
        assert len(peer.asked(flooded)) == 16 + times
        ask_quietly()
        ask_for_car()
        found = read_metrics(pool.base_url)
        assert sample(found, "ccp_peer_circuit_open", peer="slow") == 0
        labels = {"peer": "slow", "operation": "GetContractDataByPcid", "outcome": "limited"}
        assert sample(found, "ccp_peer_requests_total", **labels) == 150 - 16


def test_shares_reserve_a_quarter_for_callers_with_none_in_flight() -> None:
    shares = Shares(8, 5)
    taken = []

    def take(caller: str) -> bool:
        if not shares.has_room(caller):
            return False
        one = shares.taken(caller)
        one.__enter__()
        taken.append(one)
        return True

    assert [take("a") for _ in range(6)] == [True] * 5 + [False]
    assert [take("b") for _ in range(3)] == [True, False, False]
    assert take("c")
    assert take("d")
    assert not take("e")
    for one in taken:
        one.__exit__(None, None, None)
    assert take("e")
    assert len(shares._in_flight) == 1


def test_circuits_of_callers_are_separate_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_limits, "_MAX_CIRCUITS", 10)
    circuits = Circuits(lambda: 0.0)
    for _ in range(3):
        circuits.record_failure("a")
    with pytest.raises(Unavailable):
        circuits.check("a", "peer")
    circuits.check("b", "peer")
    for number in range(100):
        circuits.record_failure(str(number))
    assert len(circuits._failing) == 10
    circuits.record_success("99")
    assert len(circuits._failing) == 9


def test_peer_contract_that_is_invalid_keeps_the_circuit_closed(pkis: dict[str, PKI]) -> None:
    with scripted() as peer, start(pkis, pool_id="pool-x", peer_delivery_timeout=3) as pool:
        pool.change(peers.add(Peer("far", peer.url, token="t"), AT))
        until_known(pool, "far")
        car = pool.car()
        stranger = Car.from_credential(pool.pki("stranger"), car.provisioning, car.pcid)
        for reply in (
            opnc(pool.contract(stranger, signer="stranger")),  # It verifies there, where other roots are trusted.
            opnc(pool.contract(car), emaid="DEEXAZ99999999"),
            opnc(pool.contract(car), certificateInstallationRes="gJgC"),
            json_reply({"errorMessages": ["Not now."], "traceId": "7d9a6c1e-53b8-4e0f-8a27-6f2f0d9b4c35"}, 503),
        ):
            peer.on(PATH, reply)
            for _ in range(4):
                (item,) = deliver(pool, car)
                assert item["metaData"] == "No contract is stored for the vehicle."
        other = pool.car()
        contract = pool.contract(other)
        peer.on(PATH, opnc(contract))
        (item,) = deliver(pool, other)
        assert item["emaid"] == contract.emaid
        assert sample(read_metrics(pool.base_url), "ccp_peer_circuit_open", peer="far") == 0


def test_peer_answer_drops_only_invalid_contracts(pkis: dict[str, PKI]) -> None:
    with scripted() as peer, start(pkis, pool_id="pool-x", peer_delivery_timeout=3) as pool:
        pool.change(peers.add(Peer("far", peer.url, token="t"), AT))
        until_known(pool, "far")
        car = pool.car("iso20")
        true, squatter = pool.contract(car), pool.contract(car)
        items = [item_of(squatter, emaid="DEEXAZ99999999"), item_of(true)]
        peer.on(PATH, json_reply({"signedContractDataCollection": items}))
        (item,) = deliver(pool, car)
        assert item["emaid"] == true.emaid
        assert car.install(response_bytes(item), SESSION, AT)[0] == true.emaid


# --- Lies ------------------------------------------------------------------------------------------------------------


def race(
    pkis: dict[str, PKI],
    liar: Callable[[Pool, Contract], Reply],
    *,
    liar_speaks: str = "opnc",
    true_provider: str | None = None,
    known_here: bool = False,
    delay: float = 0.4,
) -> tuple[str, str, str]:
    """A malicious peer answers at once with a foreign contract, another peer later with the correct one.

    Returns the delivered EMAID, the correct one and the foreign one.
    """
    with scripted() as first, scripted() as second, start(pkis, pool_id="pool-x", peer_delivery_timeout=3) as pool:
        car, stranger = pool.car(), pool.car()
        foreign = pool.publish(stranger) if known_here else pool.contract(stranger)
        true = pool.contract(car)
        first.on(PATH if liar_speaks == "opnc" else "/v1/ccp/signedContractData", liar(pool, foreign))
        second.on(PATH, later(delay, opnc(true)))
        held = frozenset({ProviderId.parse(true_provider)}) if true_provider else frozenset()
        pool.change(peers.add(Peer("liar", first.url, liar_speaks, token="t"), AT))
        pool.change(peers.add(Peer("honest", second.url, token="t", provider_ids=held), AT))
        until_known(pool, "honest")
        (item,) = deliver(pool, car)
        assert len(first.received) == 1
        return item["emaid"], true.emaid, foreign.emaid


def relabelled(pool: Pool, foreign: Contract) -> Reply:
    """A foreign contract labelled with the PCID of the requesting vehicle."""
    number = int(str(foreign.body["pcid"])[-9:])
    return opnc(foreign, pcid=f"{str(foreign.body['pcid'])[:-9]}{number - 1:09d}")


def test_peer_answer_without_pcid_does_not_displace_one_with_pcid(pkis: dict[str, PKI]) -> None:
    given, true, _ = race(pkis, lambda pool, foreign: opcp(foreign), liar_speaks="opcp")
    assert given == true


def test_peer_contract_that_is_relabelled_does_not_displace_a_registered_peers(
    pkis: dict[str, PKI],
) -> None:
    given, true, _ = race(pkis, relabelled, true_provider="DEEXA")
    assert given == true


def test_peer_contract_that_is_contradicted_does_not_displace_a_correct_one(pkis: dict[str, PKI]) -> None:
    given, true, _ = race(pkis, relabelled, known_here=True)
    assert given == true


def test_peer_answer_without_a_name_is_delivered_if_there_is_no_better(pkis: dict[str, PKI]) -> None:
    given, _, foreign = race(pkis, lambda pool, foreign: opcp(foreign), liar_speaks="opcp", delay=20)
    assert given == foreign


# --- Words -----------------------------------------------------------------------------------------------------------

HOSTILE = "\x1b]0;owned\x07\x1b[31m\u202ered\u2066\x00\x85\u2028"


@pytest.fixture
def hostile() -> str:
    return HOSTILE * 2_000


def with_peer(pkis: dict[str, PKI], use: Callable[[Pool, Scripted], None]) -> None:
    with scripted() as peer, start(pkis, FAR, pool_id="pool-x", peer_delivery_timeout=3) as pool:
        pool.change(peers.add(Peer("rude", peer.url, token="t"), AT))
        until_known(pool, "rude")
        use(pool, peer)


def test_peer_text_is_limited(pkis: dict[str, PKI], hostile: str) -> None:
    def use(pool: Pool, peer: Scripted) -> None:
        car = pool.car()
        contract = pool.contract(car)
        peer.on(PATH, opnc(contract, metaData=hostile))
        (item,) = deliver(pool, car)
        assert item["emaid"] == contract.emaid
        assert response_bytes(item)
        assert 1 <= len(item["metaData"]) <= 10_000
        assert item["metaData"].isprintable()
        path = "/contractData/pcid/WFX0TEST000000001"
        many = [hostile[:600]] * 100
        peer.on(BASE + path, json_reply({"errorMessages": many, "traceId": hostile[:1000]}, 404))
        statement = sentences_of(pool.client("far_oem").get(path, headers=to("rude")), 404)
        assert 1 <= len(statement) <= 10
        assert all(1 <= len(sentence) <= 500 and sentence.isprintable() for sentence in statement)

    with_peer(pkis, use)


def test_peer_text_keeps_printable_characters() -> None:
    assert plain("Zürich, 東京 – 5 €", 100) == "Zürich, 東京 – 5 €"
    assert plain("a\nb\x1b[1mc\u202e", 5) == "a b [1"[:5]
    assert sentences([" First. ", 7, None, "", "\x00", "Second."]) == ("First.", "Second.")
    assert sentences("First.") == sentences(None) == sentences(json.loads('{"a": 1}')) == ()
